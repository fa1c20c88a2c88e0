#!/bin/sh
# bundle.sh SOURCE DIRECTORY: make a git repository of SOURCE, tagged v1, and DIRECTORY/plain.bundle of it: one file that git fetches from.
set -eu
git init --quiet --initial-branch main "$2"
cp "$1/plain.py" "$1/requirements.txt" "$2"
cd "$2"
git add .
git -c user.name=test -c user.email=test@example.com commit --quiet --message "First version"
git tag v1
git bundle create --quiet plain.bundle HEAD main v1
