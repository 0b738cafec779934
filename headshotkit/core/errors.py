"""All errors for people: what happened with numbers, why, what to do next."""

import re

NOTEBOOKS = {
    "check": "01_check_photos", "prepare": "01_check_photos", "train": "02_train_lora",
    "pick": "03_generate_headshots", "generate": "03_generate_headshots", "restore": "04_restore_faces",
    "evaluate": "05_evaluate", "gallery": "05_evaluate", "run": "00_quickstart", "demo": "00_quickstart",
}  # fmt: skip
"""Command -> the notebook that runs it."""


def notebook_words(text: str) -> str:
    """Return a command-line message in a notebook's words: notebooks for commands, knobs for options.

    >>> notebook_words("Run first: headshotkit check PHOTOS --out runs/me")
    'Run first: notebook 01_check_photos'
    >>> notebook_words("Add photos, or pass --min-photos 6, then give the same command again.")
    'Add photos, or set MIN_PHOTOS = 6, then run the cell again.'
    >>> notebook_words("Choose another --out.")
    'Choose another RUN.'
    """
    commands = "|".join(NOTEBOOKS)
    text = re.sub(rf"headshotkit ({commands})\b(?: (?!(?:and|or|then)\b)[^\s;,]+)*",
                  lambda found: f"notebook {NOTEBOOKS[found[1]]}", text)  # fmt: skip
    text = re.sub(
        r"([Gg])ive the same command again", lambda g: f"{'R' if g[1] == 'G' else 'r'}un the cell again", text
    )
    text = re.sub(r"--out\b", "RUN", text)
    text = re.sub(r"pass (--[a-z-]+) (\d[\d.]*\d|\d)", r"set \1 = \2", text)
    return re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].upper().replace("-", "_"), text)


ACTING = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters of terminals, and characters that turn the writing direction; file names may hold them."""


MOST_LETTERS = 2000
"""Longest part of an error, characters."""


def _shown(text: str) -> str:
    r"""Return a text as an error may show it: control characters escaped, cut to a readable length.

    >>> _shown("a" * 3000 + "b")[-4:], _shown("\x1b[2J")
    ('aaab', '\\x1b[2J')
    """
    if len(text) > MOST_LETTERS:
        text = f"{text[: MOST_LETTERS // 2]} ... {text[-MOST_LETTERS // 2 :]}"
    return ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


class HeadshotError(Exception):
    """Base of all errors that headshotkit raises on purpose; the command line turns it into exit code 2.

    Args:
        happened: what happened, with numbers, one line.
        why: the cause as far as it is known.
        next_step: what the person can do now.
    """

    def __init__(self, happened: str, why: str = "", next_step: str = "") -> None:
        self.happened, self.why, self.next_step = (_shown(text) for text in (happened, why, next_step))
        lines = [f"{type(self).__name__}: {self.happened}"]
        lines += [f"  {line}" for line in (self.why, self.next_step) if line]
        super().__init__("\n".join(lines))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback, in a notebook's words."""
        return [notebook_words(line) for line in str(self).split("\n")]


class NoPhotos(HeadshotError):
    """The photo folder is missing or holds no possible photo."""


class UploadIncomplete(HeadshotError):
    """Not all photos chosen for upload arrived."""


class TooFewPhotos(HeadshotError):
    """The gate kept fewer photos than training needs."""


class CannotKeep(HeadshotError):
    """A rejected photo cannot be kept."""


class NoKnownFaces(HeadshotError):
    """There is no embedding of the person for comparison."""


class BadConfig(HeadshotError):
    """A setting is out of range, or two settings contradict each other."""


class UnknownBase(HeadshotError):
    """No base has that name."""


class BaseUnavailable(HeadshotError):
    """The weights of a known base are not available here."""


class DownloadFailed(BaseUnavailable):
    """Weights are not on this machine and can't be downloaded.

    Args:
        cause: the cause in a word, as in `downloads.Trouble.code`.
    """

    def __init__(self, happened: str, why: str, next_step: str, cause: str) -> None:
        super().__init__(happened, why, next_step)
        self.cause = cause


class MissingPackage(HeadshotError):
    """An optional package is not installed."""


class BrokenPackage(HeadshotError):
    """An optional package is installed but can't be loaded."""


class CannotRestore(HeadshotError):
    """The given restoration weights can't be used; the headshots are passed on unrestored."""


class BadWeights(HeadshotError):
    """A weights file is damaged or belongs to another network."""


class MissingModel(HeadshotError):
    """A face model's file is not on this machine and can't be downloaded.

    Args:
        cause: the cause in a word, as in `downloads.Trouble.code`; empty if nothing was downloaded.
    """

    def __init__(self, happened: str, why: str, next_step: str, cause: str = "") -> None:
        super().__init__(happened, why, next_step)
        self.cause = cause


class NoRun(HeadshotError):
    """The folder given to a notebook that continues a run holds no run."""


class RunFolderError(HeadshotError):
    """The run folder can't be created or written to."""


class RunBusy(HeadshotError):
    """Another command is working in the run folder."""


class DamagedRun(HeadshotError):
    """A run folder's file differs from what was written; nothing in the run was changed."""


class BadCaption(HeadshotError):
    """A caption file is not text."""


class DiskFull(HeadshotError):
    """The disk filled up during a write; the file's earlier version is untouched."""


class StageMissing(HeadshotError):
    """A stage was started before the stage that it reads from."""


class NotMeasured(HeadshotError):
    """A metric can't be measured on these pictures."""


class NothingToShow(HeadshotError):
    """The run holds no data for the requested figure."""


class BadPromptBank(HeadshotError):
    """A prompt bank file does not follow the format."""


class BadLora(HeadshotError):
    """A LoRA file does not fit the base that it is loaded on."""


class OutOfMemory(HeadshotError):
    """A stage needs more memory than is available, and has no cheaper option; finished work is saved."""


class NotFinite(HeadshotError):
    """A loss, weights, latents or a picture hold NaN or infinity; none of them is saved."""


class UnknownGpu(HeadshotError):
    """The planner has no rates for that GPU."""


class TooFewMinutes(HeadshotError):
    """Even the cheapest plan takes longer than the given minutes."""


class NotEnoughMemory(HeadshotError):
    """A request, or the cheapest plan, needs more memory than is available; checked before any is allocated."""
