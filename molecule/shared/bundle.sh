#!/bin/sh
# bundle.sh SOURCE DIRECTORY: commit SOURCE to a new git repository in DIRECTORY, tag v1 and v2, and bundle it as DIRECTORY/plain.bundle.
set -eu
# Always the same commits: hosts that start from a snapshot have the bundle.
export GIT_AUTHOR_DATE="2026-01-01T00:00:00Z" GIT_COMMITTER_DATE="2026-01-01T00:00:00Z"
git init --quiet --initial-branch main "$2"
cp "$1/plain.py" "$1/requirements.txt" "$2"
cd "$2"
for version in v1 v2; do
    sed -i "s/plain v1/plain $version/" plain.py
    git add .
    git -c user.name=test -c user.email=test@example.com commit --quiet --message "Version $version"
    git tag "$version"
done
git bundle create --quiet plain.bundle HEAD main v1 v2
