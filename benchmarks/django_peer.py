"""The Python peer: django-revproxy in a Django application of one file, for gunicorn."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings
from django.core.exceptions import PermissionDenied

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for measuring",
    LOGGING_CONFIG=None,
    REVPROXY={"QUOTE_SPACES_AS_PLUS": True},
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import re_path  # noqa: E402
from revproxy.views import ProxyView  # noqa: E402


class Permitted(ProxyView):  # type: ignore[misc]
    """Asks a permission first, and sets one field, as the others do."""

    upstream = os.environ["BENCHMARK_UPSTREAM"]

    def dispatch(self, request: Any, path: str) -> Any:
        if not request.path.startswith("/files/"):
            raise PermissionDenied
        response = super().dispatch(request, path)
        response["X-Frame-Options"] = "DENY"
        return response


urlpatterns = [re_path("files/(?P<path>.*)", Permitted.as_view())]
application = get_wsgi_application()
