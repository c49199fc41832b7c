"""What can go wrong in the toolchain, as exceptions.

    ImgclsError
    ├── DataError        a picture folder that is missing, empty or contradicts another one
    ├── CheckpointError  a .pth that can't be read, or does not fit the network
    ├── TrainingError    a run that can't start or go on
    ├── ExportError      a network that can't be exported as asked
    ├── AdoptError       somebody's classifier that can't be adopted as asked
    ├── DeviceError      a device that was asked for and is not there
    └── OptionError      an option that is unknown, has no such value, or contradicts another one

Each message is one line: what is wrong, which file, what to do. Pictures and exported models raise imgcls_infer's
InferError tree; the command line catches both.
"""

from __future__ import annotations


class ImgclsError(Exception):
    """Base of every error that imgcls raises on purpose."""


class DataError(ImgclsError):
    """A picture folder that is missing, empty or contradicts another one."""


class CheckpointError(ImgclsError):
    """A checkpoint that can't be read or written, or that does not fit its network."""


class TrainingError(ImgclsError):
    """A run that can't start or go on."""


class ExportError(ImgclsError):
    """A network that can't be exported as asked, or an export that fails its own check."""


class AdoptError(ImgclsError):
    """Somebody's classifier that can't be adopted as asked, or an adoption that fails its own check."""


class DeviceError(ImgclsError):
    """A device that was asked for and is not there."""


class OptionError(ImgclsError):
    """An option that is unknown, has no such value, or contradicts another one."""
