"""The key ``source`` of an app: where its code comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Hidden, Pattern

#: Types of SSH keys; those of hardware tokens begin with sk-.
SSH_KEY_TYPE = r"ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
#: A public key line: type, key in base64 and comment. Options before the type are not allowed.
PUBLIC_KEY = rf"({SSH_KEY_TYPE}) +[A-Za-z0-9+/]+=*( [^\n]*)?\n?"

#: A requirement of a certain version (PEP 508), with optional extras and marker, or of a URL.
REQUIREMENT = Pattern(
    r"[A-Za-z0-9][\w.-]*(\[[\w., -]+\])? *"
    r"(==[\w.!+-]+ *|@ *(https?://[^\s@]+|[a-z]+\+[a-z]+://[^\s@]+@[0-9a-f]{40}(#\S+)?)( +|$))(;[^\n]*)?",
    'a package and its version, such as "gunicorn==23.0.0", or its URL without credentials, with the commit for a repository',
)

#: A path inside the source, relative to it.
RELATIVE_PATH = r"(?!.*(^|/)\.\.(/|$))[^/].*"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the code comes from."""

    EXACTLY_ONE: ClassVar = ("path", "git", "archive", "package", "push", "directory")

    path: Annotated[
        str | None,
        Doc(
            "Directory on the controller, sent without the files that its git ignores. A relative path is resolved against the "
            "working directory of ansible-playbook, then against the directory of the playbook."
        ),
    ] = None
    git: Annotated[
        str | None,
        Doc(
            "URL of a git repository that the host clones, including its submodules. Only C(deploy_key) gives access to "
            "submodules that are private."
        ),
    ] = None
    archive: Annotated[
        str | None,
        Doc(
            "Tar, also compressed, or zip: URL that the host downloads, or file on the controller. One top-level directory is "
            "stripped."
        ),
    ] = None
    package: Annotated[
        str | None,
        Doc("Python package, optionally with extras, that contains all code of the app."),
        Pattern(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?", 'the name of a package, such as "shop" or "shop[redis]"'),
    ] = None
    requirements: Annotated[
        list[str] | None,
        Doc("Further packages beside C(package), such as C([gunicorn==23.0.0]), each with its version."),
        REQUIREMENT,
    ] = None
    push: Annotated[
        str | None,
        Doc("Branch that is built and served when it is pushed: C(git push git@host:<app> <branch>). No submodules."),
        Pattern(r"(?!.*(\.\.|//|\.lock$|[./]$))[A-Za-z0-9][\w./-]{0,99}", 'the name of a branch, such as "main"'),
    ] = None
    keys: Annotated[
        list[str] | None,
        Doc("SSH public keys that may push, each with its owner as comment: C(ssh-ed25519 AAAA... alice). Required for C(push)."),
        Pattern(PUBLIC_KEY, 'a line of an SSH public key, such as "ssh-ed25519 AAAA... alice"'),
    ] = None
    directory: Annotated[
        str | None,
        Doc(
            "Directory on the host that the app runs from in place, for development only. Requires C(debug). A release is only "
            "the environment and the settings; the app serves C(static) itself. The users C(<app>), which runs the app, and "
            "C(_<app>), which builds it, must be able to read the directory."
        ),
        Pattern(r"/.*", "the absolute path of a directory on the host"),
    ] = None
    version: Annotated[
        str | None,
        Doc(
            "Branch, tag or commit of C(git), or version of C(package). The default branch of C(git) if unset; C(package) "
            "requires it."
        ),
        Pattern(r"(?!-)[^\s~^:?*\[\\]+", "the name of a branch or tag, a commit, or a version"),
    ] = None
    checksum: Annotated[
        str | None,
        Doc("Checksum of C(archive): C(sha256:) and 64 hexadecimal digits. Required for a URL."),
        Pattern(r"sha256:[0-9a-f]{64}", '"sha256:" and 64 hexadecimal digits'),
    ] = None
    subdirectory: Annotated[
        str | None,
        Doc(
            "Directory of C(git), C(push) or C(archive) with the app, such as in a monorepo. It takes the place of the source: "
            "files outside of it are not in the release."
        ),
        Pattern(RELATIVE_PATH, "a directory inside the source, relative to it"),
    ] = None
    deploy_key: Annotated[
        str | None, Doc("Private SSH key with read access to C(git), including its submodules; never shown or logged."), Hidden
    ] = None
    host_key: Annotated[
        str | None,
        Doc("Lines of known_hosts for the git server. If unset, the key of the first fetch is stored; another is rejected."),
    ] = None

    @property
    def git_ref(self) -> str | None:
        """The branch, tag or commit of C(git); None for the default branch."""
        return None if self.version == "HEAD" else self.version

    @property
    def archive_is_url(self) -> bool:
        """Whether the host downloads C(archive) from a URL; otherwise it is a file on the controller."""
        return self.archive is not None and "://" in self.archive
