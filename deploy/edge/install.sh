#!/bin/sh
# Installs imgcls-infer on a 64-bit Linux board (Raspberry Pi OS, Debian, Ubuntu): a virtual environment of its own, the
# model, a command, and the self-check that proves both. From a bundle (bundle.py) it needs no network. Running it again
# updates; --uninstall takes everything away.
set -eu
umask 022 # the service's user has to read what root puts there

prefix=/opt/imgcls
bin=/usr/local/bin
model=
serve=
uninstall=
unit=/etc/systemd/system/imgcls-serve.service
here=$(cd "$(dirname "$0")" && pwd)

usage() {
  cat <<END
usage: install.sh [--model FILE] [--prefix DIR] [--bin DIR] [--serve] [--uninstall]

  --model FILE   the model; default: the bundle's, or the one that is installed already, or the built-in one
  --prefix DIR   where it goes; default: $prefix
  --bin DIR      where the command goes; default: $bin
  --serve        imgcls-serve as well, as a systemd service on port 8000 of this machine (root, prefix /opt/imgcls);
                 an update keeps it and starts it again
  --uninstall    take all of it away
END
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

while [ $# -gt 0 ]; do
  case $1 in
    --model | --prefix | --bin)
      if [ -z "${2:-}" ]; then fail "$1 needs a value; see --help" 2; fi
      case $1 in
        --model) model=$2 ;;
        --prefix) prefix=$2 ;;
        --bin) bin=$2 ;;
      esac
      shift
      ;;
    --serve) serve=yes ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown option $1; see --help" 2 ;;
  esac
  shift
done
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
marker=$prefix/.imgcls-install
command=$bin/imgcls-infer
service=imgcls-serve.service

# Nothing that this script did not make is removed or replaced.
ours() {
  [ ! -e "$1" ] || grep -q 'installed by imgcls' "$1"
}

# Ends when requests are answered: the unit is of Type=notify.
start_service() {
  cp "$here/$service" "$unit"
  systemctl daemon-reload
  systemctl reset-failed $service 2>/dev/null || true # one that failed too often is not started otherwise
  systemctl enable --quiet $service
  systemctl restart $service || fail "the service does not start; journalctl -u $service says why"
}

remove_service() {
  systemctl disable --quiet --now $service 2>/dev/null || true
  rm -f "$unit"
  systemctl daemon-reload 2>/dev/null || true
  systemctl reset-failed $service 2>/dev/null || true
}

if [ -n "$uninstall" ]; then
  [ -e "$marker" ] || fail "$prefix holds no installation of imgcls"
  [ ! -e "$prefix/.serve" ] || remove_service
  if [ -e "$command" ] && ours "$command"; then rm "$command"; fi
  rm -rf "$prefix/venv"
  rm -f "$prefix/model.onnx" "$prefix/.serve" "$marker"
  rmdir "$prefix" 2>/dev/null || echo "note: $prefix holds other files and stays"
  echo "imgcls is uninstalled"
  exit 0
fi

command -v python3 >/dev/null || fail "python3 is not installed: apt install python3 python3-venv"
python3 - <<'END' || exit 1
import platform, struct, sys
bits, machine = 8 * struct.calcsize("P"), platform.machine()
problem = ""
if bits != 64:
    problem = f"this is a {bits}-bit system, and onnxruntime has no packages for it; install the 64-bit Raspberry Pi OS"
elif machine not in ("aarch64", "x86_64"):
    problem = f"this is a {machine} processor; aarch64 and x86_64 are supported"
elif sys.version_info < (3, 10):
    problem = f"Python {platform.python_version()} is older than 3.10; update the system"
if problem:
    sys.exit(f"error: {problem}")
END
python3 -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is not installed: apt install python3-venv"
ours "$command" || fail "$command is there already, and is not of this script; choose another --bin"
[ -z "$model" ] || [ -f "$model" ] || fail "$model: no such model file"
if [ -e "$prefix" ] && [ ! -e "$marker" ] && [ -n "$(ls -A "$prefix")" ]; then
  fail "$prefix is there already, and is not of this script; choose another --prefix"
fi
if [ -n "$serve" ] && [ ! -e "$prefix/.serve" ] && [ -e "$here/BUNDLE" ] && ! grep -q '"serve": true' "$here/BUNDLE"; then
  fail "this bundle is without the server; make one with bundle.py --serve"
fi
[ ! -e "$prefix/.serve" ] || serve=yes
if [ -n "$serve" ]; then
  [ "$prefix" = /opt/imgcls ] || fail "--serve goes to /opt/imgcls, which the service's unit names" 2
  [ "$(id -u)" = 0 ] || fail "the service needs root: sudo $0"
  [ -d /run/systemd/system ] || fail "the service needs systemd, which does not run here"
fi

mkdir -p "$prefix" "$bin" 2>/dev/null || true
if [ ! -w "$prefix" ] || [ ! -w "$bin" ]; then
  fail "can't write to $prefix or $bin: use sudo, or choose --prefix and --bin"
fi
: >"$marker"

extras=${serve:+[serve]}
[ -x "$prefix/venv/bin/python" ] || python3 -m venv "$prefix/venv"
if [ -d "$here/wheels" ]; then
  (cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "the bundle is damaged: copy it again"
  "$prefix/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$here/wheels" \
    --upgrade "imgcls-infer$extras" || fail "the bundle's packages do not fit this machine; its BUNDLE says what for"
  [ -n "$model" ] || [ -e "$prefix/model.onnx" ] || model=$here/model.onnx
else
  "$prefix/venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$here/..$extras"
fi

if [ -n "$model" ]; then
  cp "$model" "$prefix/.model.new"
  chmod 644 "$prefix/.model.new"
  "$prefix/venv/bin/imgcls-infer" --model "$prefix/.model.new" --self-check || {
    rm -f "$prefix/.model.new"
    [ ! -e "$prefix/.serve" ] || start_service
    fail "the self-check of the model did not pass; it was not installed"
  }
  mv "$prefix/.model.new" "$prefix/model.onnx"
fi

cat >"$command" <<END
#!/bin/sh
# installed by imgcls
if [ -z "\${IMGCLS_MODEL:-}" ] && [ -e "$prefix/model.onnx" ]; then export IMGCLS_MODEL="$prefix/model.onnx"; fi
exec "$prefix/venv/bin/imgcls-infer" "\$@"
END
chmod 755 "$command"

if [ -n "$serve" ]; then
  [ -e "$prefix/model.onnx" ] || fail "--serve needs a model: --model FILE"
  : >"$prefix/.serve"
  start_service
fi

"$command" --self-check
echo "installed: $command${serve:+, and the service at http://127.0.0.1:8000}"
