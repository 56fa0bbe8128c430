from .check import CheckResult as CheckResult, check_config as check_config, describe_pair as describe_pair
from .distributed.group import join_group as join_group, process_group as process_group, refuse_mixing as refuse_mixing
from .distributed.launch import (
    ProcessPlace as ProcessPlace,
    find_place as find_place,
    run_local_processes as run_local_processes,
)
from .experiment import (
    Result as Result,
    assert_same_start as assert_same_start,
    resume_run as resume_run,
    train_as_follower as train_as_follower,
    train_config as train_config,
)
from .resume import config_to_resume as config_to_resume, find_run_to_resume as find_run_to_resume
from .search_space import check_search_space as check_search_space, read_search_space as read_search_space
from .sweep import run_sweep as run_sweep, show_sweep as show_sweep
