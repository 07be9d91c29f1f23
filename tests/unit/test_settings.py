"""Where an app's election is: what the sidecar says, else the environment, else the app's own settings."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.utils.imports import load_extension_class_names, symbol_by_name

from zkbeat.access import Access
from zkbeat.errors import ConfigError
from zkbeat.settings import PLACE_FILE, Place, place


def app(**conf):
    made = Celery("test", set_as_current=False)
    made.conf.update(conf)
    return made


OWN = {"zkbeat_hosts": "app:1", "zkbeat_name": "shop"}


def test_the_app_s_own_settings_will_do():
    found = place(app(**OWN, zkbeat_root="/here", zkbeat_session_timeout=4), {})
    assert (found.access.hosts, found.access.session_timeout_s, found.base) == ("app:1", 4.0, "/here/shop")


def test_the_environment_wins():
    found = place(app(**OWN), {"ZKBEAT_HOSTS": "env:2", "ZKBEAT_SESSION_TIMEOUT": "6"})
    assert (found.access.hosts, found.access.session_timeout_s, found.base) == ("env:2", 6.0, "/zkbeat/shop")


def test_what_the_sidecar_has_written_wins_over_everything(tmp_path):
    told = Place(Access("sidecar:3", auth_scheme="digest", auth_user="u", auth_password="p"), "/zkbeat/e")
    (tmp_path / "place").write_bytes(told.encode())
    assert place(app(**OWN), {"ZKBEAT_HOSTS": "env:2", PLACE_FILE: str(tmp_path / "place")}) == told


def test_credentials_are_taken_from_the_app_and_not_shown():
    found = place(app(**OWN, zkbeat_auth_user="u", zkbeat_auth_password="s3cret"), {})
    assert (found.access.auth_scheme, found.access.auth_password) == ("digest", "s3cret")
    assert "s3cret" not in repr(found)


def test_a_django_app_has_them_under_its_prefix():
    made = Celery("test", set_as_current=False)
    made.config_from_object({"CELERY_ZKBEAT_HOSTS": "django:4", "CELERY_ZKBEAT_NAME": "shop"}, namespace="CELERY")
    assert place(made, {}).access.hosts == "django:4"


@pytest.mark.parametrize(
    ("conf", "environment", "says"),
    [
        ({"zkbeat_name": "shop"}, {}, "Set zkbeat_hosts"),
        ({"zkbeat_hosts": "app:1"}, {}, "Set zkbeat_name"),
        ({**OWN, "zkbeat_hosts": "app:port"}, {}, "is not a port"),
        ({**OWN, "zkbeat_name": "a/b"}, {}, "cannot be an election's name"),
        ({**OWN, "zkbeat_auth_user": "u"}, {}, "need a password"),
        (OWN, {PLACE_FILE: "/nowhere"}, "cannot read /nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(conf, environment, says):
    with pytest.raises(ConfigError, match=says) as error:
        place(app(**conf), environment)
    assert "\n" not in str(error.value)


def test_a_place_file_of_another_kind_is_said_to_be_one(tmp_path):
    for data in (b"", b"[]", b"{}", b'{"access": {}, "base": "/x"}'):
        (tmp_path / "place").write_bytes(data)
        with pytest.raises(ConfigError, match="which the sidecar writes"):
            place(app(), {PLACE_FILE: str(tmp_path / "place")})


def test_celery_knows_the_scheduler_by_its_short_name():
    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    assert symbol_by_name("zookeeper", aliases=aliases).__name__ == "ZooKeeperScheduler"
