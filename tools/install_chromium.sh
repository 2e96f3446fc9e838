#!/usr/bin/env bash
# Install Debian's or Ubuntu's Chromium for the tests of the studio; nothing is done where there is one.
set -euo pipefail
if command -v chromium || command -v chromium-browser; then exit 0; fi
if ! command -v apt-get > /dev/null; then
  echo "there is neither chromium nor apt-get here: install Chromium, so that the command chromium starts it" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium > /dev/null
command -v chromium
