"""Settings are complete or refused, and tell no secret."""

from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY, read_settings

ENVIRONMENT = {
    "WINDSOCK_HOME": "home",
    "WINDSOCK_CODE_SHA": "0" * 40,
    "WINDSOCK_WAREHOUSE_DSN": "postgresql://warehouse:hush1@localhost/warehouse",
    "WINDSOCK_SOURCE_DSN": "postgresql://source:hush2@localhost/source",
    "WINDSOCK_STUDIES_DSN": "postgresql://studies:hush3@localhost/studies",
    "WINDSOCK_S3_ENDPOINT": "http://localhost:9000",
    "AWS_ACCESS_KEY_ID": "hush4",
    "AWS_SECRET_ACCESS_KEY": "hush5",
    "WINDSOCK_LAKE_BUCKET": "lake",
    "WINDSOCK_VERSIONS_BUCKET": "dvc",
    "MLFLOW_TRACKING_URI": "http://localhost:5000",
}


def test_a_complete_environment_is_read_and_what_is_optional_has_its_default():
    found = read_settings(ENVIRONMENT)
    assert (found.home, found.params) == (Path("home"), REPOSITORY / "params.yaml")
    assert (found.slack_token, found.slack_webhook, found.slack_channel) == (None, None, "#windsock")
    assert read_settings({**ENVIRONMENT, "WINDSOCK_PARAMS": "other.yaml"}).params == Path("other.yaml")


def test_every_missing_variable_is_named_at_once():
    with pytest.raises(ValueError, match="make up") as error:
        read_settings({})
    assert all(name in str(error.value) for name in ENVIRONMENT)


def test_an_empty_variable_counts_as_missing_and_only_what_is_missing_is_named():
    with pytest.raises(ValueError, match="not set in the environment: WINDSOCK_HOME "):
        read_settings({**ENVIRONMENT, "WINDSOCK_HOME": ""})


def test_no_secret_is_in_the_words_for_settings():
    slack = {"SLACK_BOT_TOKEN": "hush6", "SLACK_WEBHOOK_URL": "http://localhost/hush7"}
    found = read_settings({**ENVIRONMENT, **slack})
    assert (found.s3_secret_key, found.slack_token) == ("hush5", "hush6")
    assert "hush" not in repr(found)
    assert "hush" not in str(found)


def test_a_slash_at_the_end_of_an_address_changes_nothing():
    assert read_settings(ENVIRONMENT | {"WINDSOCK_GATEWAY_URL": "http://h:1/"}).gateway_url == "http://h:1"


def test_what_params_yaml_may_name_for_webhooks_is_read_and_not_told():
    found = read_settings({**ENVIRONMENT, "WEBHOOK_URL": "https://a.example/hush8", "WEBHOOK_EMPTY": "", "OTHER": "x"})
    assert found.webhooks == {"WEBHOOK_URL": "https://a.example/hush8"}
    assert "hush" not in repr(found)
