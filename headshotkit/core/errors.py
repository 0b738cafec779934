"""Every error a person can meet: what happened with numbers, why, what to do next."""

import re

NOTEBOOKS = {
    "check": "01_check_photos", "prepare": "01_check_photos", "train": "02_train_lora",
    "pick": "03_generate_headshots", "generate": "03_generate_headshots", "restore": "04_restore_faces",
    "evaluate": "05_evaluate", "gallery": "05_evaluate", "run": "00_quickstart", "demo": "00_quickstart",
}  # fmt: skip
"""Command -> the notebook that does it."""


def notebook_words(text: str) -> str:
    """Return what is said to the command line as a notebook says it: notebooks for commands, knobs for options.

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
"""Characters that a terminal obeys, and those that turn the direction of what follows; names of files may hold them."""


MOST_LETTERS = 2000
"""Of each part of an error."""


def _shown(text: str) -> str:
    r"""Return a text as an error may show it: escaped where a terminal would obey it, and of a length to be read.

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
        """Return the lines that IPython shows in a traceback's place, in a notebook's words."""
        return [notebook_words(line) for line in str(self).split("\n")]


class NoPhotos(HeadshotError):
    """The photo folder is missing, or holds nothing that could be a photo."""


class UploadIncomplete(HeadshotError):
    """Photos were chosen to be uploaded, and not all of them arrived."""


class TooFewPhotos(HeadshotError):
    """The gate kept fewer photos than training needs."""


class CannotKeep(HeadshotError):
    """A refused photo is to be kept all the same, and can't be."""


class NoKnownFaces(HeadshotError):
    """There is no embedding of the person to compare with."""


class BadConfig(HeadshotError):
    """A setting is out of range, or two settings contradict each other."""


class UnknownBase(HeadshotError):
    """The named base is not one that headshotkit knows."""


class BaseUnavailable(HeadshotError):
    """The base is known, but its weights can't be had here."""


class DownloadFailed(BaseUnavailable):
    """Weights are not on this machine, and can't be downloaded.

    Args:
        cause: the cause in a word, as `downloads.Trouble.code`.
    """

    def __init__(self, happened: str, why: str, next_step: str, cause: str) -> None:
        super().__init__(happened, why, next_step)
        self.cause = cause


class MissingPackage(HeadshotError):
    """An optional package is not installed."""


class BrokenPackage(HeadshotError):
    """An optional package is installed, and can't be loaded."""


class CannotRestore(HeadshotError):
    """Faces were to be restored with weights given by hand, and can't be; the headshots are handed on as they are."""


class BadWeights(HeadshotError):
    """A file of weights is damaged, or is another network's."""


class MissingModel(HeadshotError):
    """A face model's file is not on this machine and can't be fetched.

    Args:
        cause: the cause in a word, as `downloads.Trouble.code`; empty where nothing was downloaded.
    """

    def __init__(self, happened: str, why: str, next_step: str, cause: str = "") -> None:
        super().__init__(happened, why, next_step)
        self.cause = cause


class NoRun(HeadshotError):
    """A notebook that goes on with a run was given a folder that holds none."""


class RunFolderError(HeadshotError):
    """The run folder can't be created or written."""


class RunBusy(HeadshotError):
    """Another command works in the run folder."""


class DamagedRun(HeadshotError):
    """A file of the run folder is there, but isn't what was written; nothing of the run was touched."""


class BadCaption(HeadshotError):
    """A caption's file is no text."""


class DiskFull(HeadshotError):
    """The disk filled up while a file was written; the file's earlier version is untouched."""


class StageMissing(HeadshotError):
    """A stage was asked for before the one that it reads from."""


class NothingToShow(HeadshotError):
    """A figure was asked for, and the run holds nothing to draw in it."""


class BadPromptBank(HeadshotError):
    """A prompt bank file does not follow the format."""


class BadLora(HeadshotError):
    """A LoRA file does not belong to the base it is loaded on."""


class OutOfMemory(HeadshotError):
    """A stage needs more memory than there is, and nothing cheaper is left; what was finished before is saved."""


class NotFinite(HeadshotError):
    """A loss, weights, latents or a picture hold NaN or infinity; nothing of them is saved."""


class UnknownGpu(HeadshotError):
    """The planner knows no rates of that GPU."""


class TooFewMinutes(HeadshotError):
    """Not even the cheapest plan fits into the minutes."""


class NotEnoughMemory(HeadshotError):
    """A request, or the cheapest plan, needs more memory than there is; it was weighed before any was taken."""
