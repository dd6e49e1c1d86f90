#!/bin/sh
# Whether S3 keeps what it is given by who has the keys: /healthz would be content with a full disk.
set -eu
ask() {
    curl --silent --show-error --max-time 5 --unix-socket /run/s3/s3.sock --aws-sigv4 aws:amz:us-east-1:s3 \
        --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$@"
}
date >/tmp/beat
ask --output /dev/null --request PUT http://s3/health # there already, but for the first time
ask --fail --upload-file /tmp/beat http://s3/health/beat
ask --fail http://s3/health/beat | cmp - /tmp/beat
