"""Two users and one permission: alice may view the reports, bob may not."""

from __future__ import annotations

from hmac import compare_digest

from pyramid.authentication import SessionAuthenticationHelper
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.request import Request

# In the open, because this is a demo that listens on the loopback address only.
PASSWORDS = {"alice": "alice", "bob": "bob"}
GROUPS = {"alice": ["group:readers"], "bob": []}


class Root:
    """The context of every request; its ACL says who may view."""

    __acl__ = ((Allow, "group:readers", "view"),)

    def __init__(self, request: Request) -> None:
        pass


class SecurityPolicy:
    """Keeps the user id in the session and asks the context's ACL."""

    def __init__(self) -> None:
        self.session = SessionAuthenticationHelper()
        self.acl = ACLHelper()

    def authenticated_userid(self, request: Request) -> str | None:
        userid = self.session.authenticated_userid(request)
        return userid if userid in GROUPS else None

    identity = authenticated_userid

    def permits(self, request: Request, context: object, permission: str) -> object:
        userid = self.authenticated_userid(request)
        principals = [Everyone] if userid is None else [Everyone, Authenticated, userid, *GROUPS[userid]]
        return self.acl.permits(context, principals, permission)

    def remember(self, request: Request, userid: str, **kw: object) -> object:
        return self.session.remember(request, userid, **kw)

    def forget(self, request: Request, **kw: object) -> object:
        return self.session.forget(request, **kw)


def password_matches(user: str, password: str) -> bool:
    return compare_digest(PASSWORDS.get(user, "").encode(), password.encode()) and user in PASSWORDS
