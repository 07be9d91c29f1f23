"""The Django project of a node whose scheduler keeps the schedule in Django's database, as its quick start has it."""

import os

SECRET_KEY = "of no use here"
INSTALLED_APPS = ["django_celery_beat"]
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["BENCH_DATABASE"],
        "OPTIONS": {"timeout": 20},
    }
}
