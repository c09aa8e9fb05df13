"""Django with its admin, under waitress in a process of its own: it believes that it stands below a prefix.

``python -m tests.support.django_backend FOLDER PREFIX COOKIE_PATH`` prints its port. The administrator is `root`, with
the password `secret`.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: str, prefix: str, cookie_path: str) -> None:
    import django
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["*"],
        AUTH_PASSWORD_VALIDATORS=[],
        CSRF_COOKIE_PATH=cookie_path,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(folder) / "db"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        FORCE_SCRIPT_NAME=prefix,
        INSTALLED_APPS=[f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="x",
        SESSION_COOKIE_PATH=cookie_path,
        STATIC_URL="static/",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        USE_TZ=True,
        USE_X_FORWARDED_HOST=True,
    )
    django.setup()
    _serve()


def _serve() -> None:
    import waitress
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("root", "root@example.org", "secret")
    globals()["urlpatterns"] = [path("admin/", admin.site.urls)]
    told = {"clear_untrusted_proxy_headers": False}  # Django is to see what the proxy says
    server = waitress.create_server(get_wsgi_application(), listen="127.0.0.1:0", threads=2, **told)
    print(server.effective_port, flush=True)
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
