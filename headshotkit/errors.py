"""Every error a person can meet: what happened with numbers, why, what to do next."""


class HeadshotError(Exception):
    """Base of all errors that headshotkit raises on purpose; the command line turns it into exit code 2.

    Args:
        happened: what happened, with numbers, one line.
        why: the cause as far as it is known.
        next_step: what the person can do now.
    """

    def __init__(self, happened: str, why: str = "", next_step: str = "") -> None:
        self.happened, self.why, self.next_step = happened, why, next_step
        lines = [f"{type(self).__name__}: {happened}"]
        lines += [f"  {line}" for line in (why, next_step) if line]
        super().__init__("\n".join(lines))


class NoPhotos(HeadshotError):
    """The photo folder is missing, or holds nothing that could be a photo."""


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


class MissingModel(HeadshotError):
    """A face model's file is not on this machine and can't be fetched.

    Args:
        cause: the cause in a word, as `downloads.Trouble.code`; empty where nothing was downloaded.
    """

    def __init__(self, happened: str, why: str, next_step: str, cause: str = "") -> None:
        super().__init__(happened, why, next_step)
        self.cause = cause


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
    """Not even the cheapest plan fits into the GPU's memory."""
