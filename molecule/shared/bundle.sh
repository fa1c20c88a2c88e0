#!/bin/sh
# bundle.sh SOURCE DIRECTORY: make a git repository of SOURCE, tagged v1 and v2, and DIRECTORY/plain.bundle of it: one file that git fetches from.
set -eu
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
