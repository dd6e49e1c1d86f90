"""The fixtures every other test stands on."""

import psycopg2
import pytest

from infra.local import s3
from pipeline.settings import Settings


@pytest.mark.parametrize("time", [1, 2])
def test_every_test_has_a_migrated_warehouse_and_buckets_of_its_own(settings: Settings, time: int) -> None:
    connection = psycopg2.connect(settings.warehouse_dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from batches")
        assert cursor.fetchone() == (0,)
        cursor.execute("insert into fences (run_key, epoch) values ('only here', 1)")
    connection.close()
    store = s3.make_s3_client(settings.s3_endpoint, settings.s3_access_key, settings.s3_secret_key)
    assert store.list_objects_v2(Bucket=settings.lake_bucket)["KeyCount"] == 0
    store.put_object(Bucket=settings.lake_bucket, Key="a/b", Body=b"x", IfNoneMatch="*")
