from .auto import (
    DataFacts as DataFacts,
    Decision as Decision,
    as_in_run as as_in_run,
    fill_open_keys as fill_open_keys,
)
from .docs import config_reference as config_reference
from .load import (
    default_name as default_name,
    dump_config as dump_config,
    flatten_config as flatten_config,
    json_schema as json_schema,
    load_config as load_config,
    override_texts as override_texts,
    shipped_configs as shipped_configs,
)
from .schema import (
    MAX_HIDDEN as MAX_HIDDEN,
    MAX_IMAGE_SIZE as MAX_IMAGE_SIZE,
    MAX_WIDTH as MAX_WIDTH,
    AugmentConfig as AugmentConfig,
    Config as Config,
    DataConfig as DataConfig,
    FineTuneConfig as FineTuneConfig,
    HeadConfig as HeadConfig,
    ModelConfig as ModelConfig,
    PhaseConfig as PhaseConfig,
    SplitConfig as SplitConfig,
)
