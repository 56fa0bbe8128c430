"""What `recipe: auto` chooses, and what it leaves alone."""

import pytest
import yaml

from finetune.config import Config, DataFacts, as_in_run, dump_config, fill_open_keys, load_config, shipped_configs

PHOTOS = DataFacts(images=2936, classes=5, size=(320, 240))
DIGITS = DataFacts(images=1400, classes=10, size=(8, 8))


def complete(facts, *overrides, **given):
    return fill_open_keys(load_config({"data": {"folder": "."}, **given}, overrides), facts)


def values(config):
    """Every value of `config` by dotted key."""
    found = {}
    for section, value in config.model_dump().items():
        parts = value if isinstance(value, tuple | list) else [value]
        for number, part in enumerate(parts):
            for name, inner in part.items() if isinstance(part, dict) else [("", part)]:
                found[f"{section}.{number}.{name}"] = inner
    return found


def changed(one, other):
    before, after = values(one), values(other)
    return {key for key in before | after if before.get(key) != after.get(key)}


def test_everything_open_is_chosen_with_a_reason():
    chosen, decisions = complete(PHOTOS)
    assert {key.split(".")[0] for decision in decisions for key in decision.values} == {"head", "fine_tune", "augment"}
    assert all(decision.reason for decision in decisions)
    assert chosen.fine_tune
    assert chosen.augment.active
    assert chosen.model.image_size is None  # the network's own


def test_what_is_shown_is_what_an_override_would_say():
    lines = [str(decision) for decision in complete(PHOTOS)[1]]
    assert "fine_tune.epochs=6: 2,936 training images" in lines
    assert any(line.startswith("augment.preset=light, augment.flip=horizontal, ") for line in lines)
    assert str(complete(DataFacts(40, 2))[1][0]).startswith("fine_tune=none: 40 training images")


def test_a_chosen_config_can_be_owned(tmp_path):
    """Written out and loaded again it is the same, and there is nothing left to choose."""
    for overrides in ((), ("fine_tune.ema=null",), ("fine_tune=none",)):
        chosen, _ = complete(DIGITS, *overrides)
        path = tmp_path / "mine.yaml"
        path.write_text(dump_config(chosen))
        again = load_config(path)
        assert again == chosen
        assert fill_open_keys(again, PHOTOS) == (again, ())
        assert fill_open_keys(chosen, DIGITS) == (chosen, ())


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("head.epochs=5", {"head.0.epochs"}),
        ("fine_tune.epochs=5", {"fine_tune.0.epochs"}),
        ("fine_tune.0.epochs=5", {"fine_tune.0.epochs"}),
        ("fine_tune.ema=null", {"fine_tune.0.ema"}),
        ("augment.flip=none", {"augment.0.flip"}),
        ("augment.views=2", {"augment.0.views"}),
        ("model.dropout=0.5", {"model.0.dropout"}),
    ],
)
def test_an_override_changes_the_key_that_it_names_and_no_other(override, keys):
    assert changed(complete(PHOTOS)[0], complete(PHOTOS, override)[0]) == keys


def test_file_and_command_line_mean_the_same():
    for override, section in (("head.epochs=5", {"head": {"epochs": 5}}), ("fine_tune=none", {"fine_tune": "none"})):
        assert complete(PHOTOS, override) == complete(PHOTOS, **section)


@pytest.mark.parametrize("nothing", [None, "none", []])
def test_the_head_only_is_reported(nothing):
    chosen, _ = complete(PHOTOS, fine_tune=nothing)
    assert chosen.fine_tune == ()
    assert chosen.head.epochs > 0
    assert complete(PHOTOS, "fine_tune.epochs=3", fine_tune=nothing)[0].fine_tune[0].epochs == 3


def test_a_config_that_meant_the_head_only_gets_a_message_what_it_means_now():
    chosen, decisions = complete(PHOTOS, head={"epochs": 3})
    assert (chosen.head.epochs, len(chosen.fine_tune)) == (3, 1)
    told = [str(decision) for decision in decisions if "Before 0.2" in decision.reason]
    assert len(told) == 1
    assert "fine_tune: none" in told[0]
    assert not any("Before 0.2" in str(decision) for decision in complete(PHOTOS)[1])


def test_settings_of_the_head_are_never_in_vain():
    """The recipe has no epochs for a head that is a regression already; whoever says how to train it wants some."""
    assert complete(PHOTOS)[0].head.epochs == 0
    assert complete(PHOTOS, "head.learning_rate=1e-2")[0].head.epochs > 0


def test_what_phases_of_the_users_own_leave_out_is_filled():
    usual = complete(PHOTOS)[0].fine_tune[0]
    phases = complete(PHOTOS, fine_tune=[{"unfreeze": 1, "learning_rate": 0.1}, {"epochs": 2}])[0].fine_tune
    assert phases[0] == usual.model_copy(update={"unfreeze": 1, "learning_rate": 0.1})
    assert phases[1] == usual.model_copy(update={"epochs": 2})


def test_fine_tuning_that_the_user_asks_for_is_done_with_few_images_too():
    chosen, _ = complete(DataFacts(40, 2, (300, 300)), "fine_tune.epochs=2")
    assert [phase.epochs for phase in chosen.fine_tune] == [2]


def test_single_values_are_kept():
    chosen, decisions = complete(DIGITS, model={"image_size": 64}, augment="none")
    assert chosen.model.image_size == 64
    assert chosen.model.resize == "squash"
    assert not chosen.augment.active
    assert not any("views" in str(decision) for decision in decisions)  # of what is not changed there is one


def test_a_preset_gives_all_numbers_of_augment_but_the_views():
    for facts in (PHOTOS, DIGITS):
        chosen, _ = complete(facts, augment="strong")
        assert chosen.augment == load_config({"data": {"folder": "."}, "augment": "strong"}).augment.model_copy(
            update={"views": chosen.augment.views}
        )


def test_recipe_none_chooses_nothing():
    chosen, decisions = complete(DIGITS, recipe="none")
    assert decisions == ()
    assert chosen.fine_tune == ()


def test_what_an_older_version_saved_is_complete_but_for_its_nulls():
    saved = complete(PHOTOS, "fine_tune.ema=null", "version=2")[0].model_dump(mode="json", exclude_none=True)
    old = load_config(saved | {"version": 1})
    assert old.fine_tune[0].ema is None
    assert fill_open_keys(old, PHOTOS) == (old, ())


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name != "tags"])
def test_shipped_configs_say_all_of_a_training(name):
    """They keep the figures that they were measured with, whatever becomes of the recipe."""
    written = yaml.safe_load(shipped_configs()[name].read_text("utf-8"))
    shipped = load_config(name)
    assert fill_open_keys(shipped, PHOTOS) == (shipped, ())
    assert bool(shipped.fine_tune) == isinstance(written["fine_tune"], dict | list)


def test_small_drawings_get_a_small_input_and_are_never_mirrored():
    chosen, _ = complete(DIGITS)
    assert (chosen.model.image_size, chosen.model.resize) == (96, "squash")
    assert chosen.augment.flip == "none"


def test_long_images_are_kept_whole():
    chosen, _ = complete(DataFacts(images=3000, classes=3, size=(900, 300)))
    assert chosen.model.resize == "pad"


@pytest.mark.parametrize(("count", "classes"), [(40, 2), (800, 200)])
def test_very_few_images_train_the_head_alone(count, classes):
    chosen, _ = complete(DataFacts(count, classes, size=(300, 300)))
    assert chosen.fine_tune == ()
    assert chosen.head.epochs > 0


def test_more_images_need_fewer_epochs():
    epochs = [
        complete(DataFacts(n, 10, (300, 300)))[0].fine_tune[0].epochs for n in (200, 1_500, 3_000, 50_000, 500_000)
    ]
    assert epochs == [20, 12, 6, 6, 3]


@pytest.mark.parametrize("images", [100, 120, 300, 1_000, 3_000, 50_000, 500_000])
def test_few_images_are_warmed_up_for_as_many_steps_as_there_can_be(images):
    """A tenth of 80 steps would be 8, too few for the rate that follows."""
    settings = complete(DataFacts(images, 5, (32, 32)))[0].fine_tune[0]
    steps = settings.epochs * -(-images // settings.batch_size)
    assert 0.1 <= settings.warmup <= 0.5
    assert settings.warmup * steps >= min(40, steps // 2) - 1
    assert settings.ema == "auto"  # by the number of steps too


def test_values_are_legal():
    for facts in (PHOTOS, DIGITS, DataFacts(10, 2), DataFacts(10**6, 1000, (500, 400))):
        chosen, _ = complete(facts)
        assert Config.model_validate(chosen.model_dump()) == chosen


def test_what_a_file_leaves_open_is_as_the_run_began():
    begun, _ = complete(DIGITS)
    again = load_config({"data": {"folder": "."}})
    assert as_in_run(again, begun) == begun
    mine = load_config({"data": {"folder": "."}, "head": {"epochs": 3}})
    assert changed(as_in_run(mine, begun), begun) == {"head.0.epochs"}
    deeper = load_config({"data": {"folder": "."}, "fine_tune": {"unfreeze": 5}})
    assert changed(as_in_run(deeper, begun), begun) == {"fine_tune.0.unfreeze"}


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "convnext_base"])
def test_networks_without_batch_norm_take_smaller_steps(name):
    rates = [complete(PHOTOS, model={"backbone": each})[0].fine_tune[0].learning_rate for each in (name, "resnet50")]
    assert rates[0] < rates[1]


def test_a_gpu_trains_all_blocks_on_new_views():
    chosen, decisions = complete(DataFacts(2936, 5, (320, 240), gpu=True))
    assert chosen.fine_tune[0].unfreeze == 1.0
    assert chosen.augment.views == "live"
    assert any("GPU" in decision.reason for decision in decisions)


@pytest.mark.parametrize(
    ("facts", "model", "epochs"),
    [
        (PHOTOS, {}, 0),
        (PHOTOS, {"hidden": [64]}, 10),
        (PHOTOS, {"cosine": True}, 10),
        (DataFacts(images=50_000, classes=1000, size=(320, 240)), {}, 10),
    ],
)
def test_a_head_that_is_no_regression_is_trained_before_the_backbone_opens(facts, model, epochs):
    chosen, _ = complete(facts, model=model)
    assert chosen.head.epochs == epochs
    assert chosen.fine_tune
