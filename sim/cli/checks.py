"""What is known to be wrong with a run before anything of it is started."""

import ctypes
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.options import APP
from sim.run_config import ConfigValue, RunConfigError

if TYPE_CHECKING:
    from fl_app.config import RunConfig

# With so many files, whose depths take long to find out, the run itself may tell.
_MANY_FILES = 20_000
_NEEDS_IMAGECODECS = ("jpeg-xl", "jpeg-xl-lossless")


def check_run(
    app: Path, values: Mapping[str, ConfigValue], clients: int, flag: str = "--clients"
) -> None:
    """Check a run of this app; other apps check themselves.

    Neither torch nor a data set is loaded.

    Parameters
    ----------
    app : Path
        Folder of the app.
    values : Mapping
        The whole run config.
    clients : int
        Simulated clients.
    flag : str
        Option of the command that sets them.

    Raises
    ------
    RunConfigError
        Names the value, what is legal and what to do.
    """
    if app.resolve() != APP:
        return
    # Here because it takes half a second, which the other commands need not wait.
    from codec import CodecError
    from fl_app.config import ConfigError, RunConfig
    from fl_app.data import DataError

    try:
        config = RunConfig.from_run_config(values)
        _check_nodes(config, clients, flag)
        _check_device(config.device)
        _check_data(config, clients, flag)
    except (ConfigError, CodecError) as error:
        raise RunConfigError(str(error)) from error
    except DataError as error:
        name = str(values["dataset"])
        raise RunConfigError(
            f"dataset = {name!r}: {str(error).removeprefix(f'{name}: ')}"
        ) from error


def _check_nodes(config: "RunConfig", clients: int, flag: str) -> None:
    """Raise `RunConfigError` if a round would wait for ever."""
    for name in ("min_available_nodes", "min_train_nodes"):
        needed = getattr(config, name)
        if needed > clients:
            raise RunConfigError(
                f"{name.replace('_', '-')} = {needed} must be at most {flag} {clients}, or no "
                f"round ever starts; lower it, or start {flag} {needed}"
            )


def _check_data(config: "RunConfig", clients: int, flag: str) -> None:
    from codec import SampleSpec
    from fl_app.config import check_classes
    from fl_app.data import describe, extent

    place = (config.data_dir, config.image_size)
    images, classes = extent(config.dataset, "train", *place)
    check_classes(config.dataset, classes)
    samples = min(images, config.max_train_samples or images)
    if clients > samples:
        limit = "max-train-samples" if samples < images else f"training samples of {config.dataset}"
        raise RunConfigError(
            f"{flag} {clients} must be at most the {samples} {limit}, or some have none; start "
            "fewer clients, or give them more samples"
        )
    codec = config.codec.codec
    if codec in _NEEDS_IMAGECODECS and importlib.util.find_spec("imagecodecs") is None:
        raise RunConfigError(
            f"codec = {codec!r} needs a package: pip install imagecodecs; or take another codec, "
            "such as 'jpeg'"
        )
    if images <= _MANY_FILES or config.dataset != "imagefolder":
        kind = describe(config.dataset, *place)
        SampleSpec(kind.shape, kind.dtype, *kind.value_range, kind.classes, codec=config.codec)


def _check_device(device: str) -> None:
    """Raise `RunConfigError` if a CUDA device is not there, without a wait for torch."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or Path("/dev/kfd").exists():  # AMD's devices have the name, too
        return
    count = _cuda_devices()
    if int(number or 0) >= count:
        raise RunConfigError(
            f"device = {device!r} must be 'auto', 'cpu' or one of the {count} CUDA devices here; "
            "leave it at 'auto'"
        )


def _cuda_devices() -> int:
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value
