"""The errors this library raises on purpose: one base class, members that also inherit the standard type."""


class LeafError(Exception):
    """Base class of every error raised on purpose: what came, what is allowed, what to do."""


class ConfigError(LeafError, ValueError):
    """A recipe or an argument has an unknown name, a wrong type or a value out of range."""


class DataError(LeafError, ValueError):
    """A data set, manifest or row cannot be used as it is."""


class AudioError(DataError):
    """A recording is missing, unreadable, empty or not a usable waveform."""


class ModelError(LeafError, RuntimeError):
    """A checkpoint cannot be used for this job, or a start-up check on it failed."""


class RewardError(LeafError, RuntimeError):
    """A reward function failed or returned something that is not one number per completion."""


class RunError(LeafError, RuntimeError):
    """A run directory exists already, is missing or is damaged."""
