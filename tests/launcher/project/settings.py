"""The settings of a Django project that has nothing but django-celery-beat's tables."""

import json
import os

_CONF = json.loads(os.environ["LAUNCHER_TEST"])

SECRET_KEY = "not one"  # of a project that serves nobody
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _CONF["database"],
        "OPTIONS": {"init_command": "PRAGMA synchronous=OFF"},  # on a busy disk one sync takes longer than a test waits
    }
}
USE_TZ = _CONF["use_tz"]
DJANGO_CELERY_BEAT_TZ_AWARE = USE_TZ
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
