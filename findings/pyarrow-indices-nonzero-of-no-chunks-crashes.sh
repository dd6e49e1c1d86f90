#!/usr/bin/env bash
# pyarrow.compute.indices_nonzero of a chunked array that has no chunks ends the process.
#
# Versions: pyarrow==25.0.1, Python 3.11
# Expected: no indices, as of a chunked array of one empty chunk.
# Behaviour: a segmentation fault. A filtered or empty table may have such columns.
# Seen:
#   one empty chunk: 0 indices
#   no chunks: signal 11
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==25.0.1
cat > "$folder/seen.py" <<'PY'
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc

print("one empty chunk:", len(pc.indices_nonzero(pa.chunked_array([pa.array([], pa.bool_())]))), "indices")
crash = "import pyarrow as pa, pyarrow.compute as pc; pc.indices_nonzero(pa.chunked_array([], pa.bool_()))"
print("no chunks: signal", -subprocess.run([sys.executable, "-c", crash], capture_output=True).returncode)
PY
cd "$folder"
diff <("$folder/venv/bin/python" seen.py) - <<'SEEN'
one empty chunk: 0 indices
no chunks: signal 11
SEEN
echo "as described"
