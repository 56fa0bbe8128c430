from .cache import (
    CACHE_KINDS as CACHE_KINDS,
    cache_folder as cache_folder,
    cache_sizes as cache_sizes,
    clear_cache as clear_cache,
)
from .device import (
    describe_device as describe_device,
    deterministic_ops as deterministic_ops,
    dtype_policy as dtype_policy,
    has_gpu as has_gpu,
    keras as keras,
    library_versions as library_versions,
    select_devices as select_devices,
    separate_stderr as separate_stderr,
    silence_cpp_logs as silence_cpp_logs,
    tf as tf,
    visible_gpus as visible_gpus,
)
from .environment import (
    available_cores as available_cores,
    is_offline as is_offline,
    peak_memory_mb as peak_memory_mb,
)
from .errors import (
    CheckFailed as CheckFailed,
    ConfigError as ConfigError,
    DataError as DataError,
    FinetuneError as FinetuneError,
    ImageError as ImageError,
    PartlyDone as PartlyDone,
    ResourceError as ResourceError,
    Stopped as Stopped,
    TrainingDiverged as TrainingDiverged,
    UsageError as UsageError,
    WeightsError as WeightsError,
    did_you_mean as did_you_mean,
    missing_packages as missing_packages,
    require_packages as require_packages,
)
from .io import (
    atomic_write as atomic_write,
    atomic_write_folder as atomic_write_folder,
    explain_os_errors as explain_os_errors,
    file_sha256 as file_sha256,
    refuse_existing as refuse_existing,
    remove_leftovers as remove_leftovers,
    require_space as require_space,
    sha256_of as sha256_of,
    temporary_name as temporary_name,
    write_bytes as write_bytes,
    write_json as write_json,
    write_text as write_text,
)
from .signals import (
    Stop as Stop,
    exit_at_once as exit_at_once,
    exits_at_once as exits_at_once,
    stop_on_signals as stop_on_signals,
    survive_closed_output as survive_closed_output,
)
from .terminal import (
    ProgressCallback as ProgressCallback,
    Terminal as Terminal,
    result_console as result_console,
    show_start as show_start,
)
from .text import (
    csv_cell as csv_cell,
    format_bytes as format_bytes,
    format_count as format_count,
    format_duration as format_duration,
    format_interval as format_interval,
    format_percent as format_percent,
    printable as printable,
    shell_command as shell_command,
)
