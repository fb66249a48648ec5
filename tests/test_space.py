"""Search spaces: what they draw, and what they refuse."""

from pathlib import Path

import optuna
import pytest

from mammoray import space
from mammoray.config import Config
from mammoray.draws import Space, Values, settings
from mammoray.errors import ConfigError
from mammoray.plain import replace

CONDITIONAL = """
[optim]
lr = {low = 1e-4, high = 1e-2, log = true}
optimizer = ["adamw", "sgd"]
momentum = {low = 0.5, high = 0.99, when = {optimizer = "sgd"}}

[sample]
alpha = {low = 0.25, high = 1.0, when = {sampler = "balanced"}}
sampler = ["natural", "balanced", "effective"]
batch_size = {low = 8, high = 32, step = 8}

[decode]
"height, width" = [[96, 80], [128, 104]]

[model]
auxiliary = [[], ["view"]]
"""


def written(folder: Path, text: str, name: str = "space.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def drawn(found: Space, count: int = 200) -> list[Values]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [found(study.ask()) for _ in range(count)]


class TestToml:
    @pytest.fixture
    def trials(self, tmp_path: Path) -> list[Values]:
        return drawn(space.load(written(tmp_path, CONDITIONAL), Config()))

    def test_a_conditional_parameter_is_drawn_beside_its_choice_and_nowhere_else(self, trials: list[Values]) -> None:
        for name, other, value in (
            ("sample.alpha", "sample.sampler", "balanced"),
            ("optim.momentum", "optim.optimizer", "sgd"),
        ):
            assert {trial[other] == value for trial in trials} == {True, False}
            assert all((name in trial) == (trial[other] == value) for trial in trials)

    def test_values_lie_in_their_ranges_and_have_the_types_of_their_settings(self, trials: list[Values]) -> None:
        assert {trial["sample.batch_size"] for trial in trials} == {8, 16, 24, 32}
        rates = sorted(trial["optim.lr"] for trial in trials)
        assert rates[0] >= 1e-4 and rates[-1] <= 1e-2
        assert 5e-4 < rates[100] < 2e-3, "logarithmic"

    def test_settings_that_belong_together_are_chosen_together(self, trials: list[Values]) -> None:
        assert {(trial["decode.height"], trial["decode.width"]) for trial in trials} == {(96, 80), (128, 104)}

    def test_every_trial_is_a_config_with_what_was_drawn(self, trials: list[Values]) -> None:
        for trial in trials:
            got = settings(space.apply(Config(seed=7), trial))
            assert {name: got[name] for name in trial} == {
                name: tuple(value) if isinstance(value, list) else value for name, value in trial.items()
            }
            assert got["seed"] == 7

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[optim]\nlearning_rate = [1e-3]", "learning_rate"),
            ("[optimizer]\nlr = [1e-3]", "optimizer"),
            ("[optim]\nlr = 1e-3", "list of choices"),
            ("[optim]\nlr = {low = 1e-2, high = 1e-4}", "low <= high"),
            ("[optim]\nlr = {low = 0.0, high = 1e-4, log = true}", "low above 0"),
            ("[optim]\nlr = {low = 1e-5, high = 1e-4, base = 2}", "base"),
            ("[optim]\nlr = {low = 1e-5}", "low <= high"),
            ("[optim]\nlr = []", "list of choices"),
            ("[optim]\nlr = ['fast']", "type float"),
            ("[optim]\nlr = [-1.0]", "above 0"),
            ("[sample]\nbatch_size = {low = 8.0, high = 9.0}", "whole numbers"),
            ("[sample]\nsampler = ['natural', 'fair']", "'fair'"),
            ("[sample]\nalpha = {low = 0.2, high = 1.0}", "no effect|--sampler is natural"),
            ("[sample]\nsampler = ['natural', 'balanced']\nalpha = {low = 0.2, high = 1.0}", "sample.alpha"),
            ("[decode]\n'height, width' = [[96]]", "list of 2 values"),
            ("[optim]\nlr = {choices = [1e-3], when = {sampler = 'natural'}}", "when"),
            (
                "[optim]\nlr = {choices = [1e-3], when = {ema = 0.9}}\nema = {choices = [0.9], when = {lr = 1e-3}}",
                "circle",
            ),
            ("[optim\nlr", "TOML"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_run(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=said):
            space.load(written(tmp_path, text), Config())

    def test_a_circle_and_a_missing_file_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no file"):
            space.load(str(tmp_path / "none.toml"), Config())


ALIKE = [
    ("split.val_share", 0.2),
    ("split.fold", 1),
    ("data.quarantine", "bad.csv"),
    ("ingest.cache", "elsewhere"),
    ("ingest.limit_seconds", 60.0),
    ("train.train_on", "train_and_val"),
    ("train.monitor", "loss"),
    ("train.monitor_level", "patient"),
    ("train.keep", 2),
    ("collapse.collapse_after", 1),
    ("evaluate.average", "views"),
    ("classes", "binary"),
    ("seed", 3),
]


@pytest.mark.parametrize(("name", "value"), ALIKE)
class TestWhatIsAlikeForAllTrials:
    """Trials would not take it from what is drawn for them, or could not be compared."""

    def test_a_toml_space_cannot_draw_it(self, name: str, value: object, tmp_path: Path) -> None:
        section, _, last = name.rpartition(".")
        text = f"[{section}]\n{last} = [{value!r}]\n" if section else f"{last} = [{value!r}]\n"
        with pytest.raises(ConfigError, match=f"{name}: expected settings of a trial's own: those of decode,"):
            space.load(written(tmp_path, text), Config())

    def test_a_python_space_can_neither_draw_nor_set_it(self, name: str, value: object, tmp_path: Path) -> None:
        for line in (f"trial.suggest_categorical({name!r}, [{value!r}])", f"return {{{name!r}: {value!r}}}"):
            with pytest.raises(ConfigError, match=f"{name}: expected settings of a trial's own"):
                space.load(written(tmp_path, f"def space(trial):\n    {line}\n", "my.py"), Config())


class TestPython:
    def test_a_function_draws_by_dotted_names_and_sets_what_it_returns(self, tmp_path: Path) -> None:
        code = """
def own(trial):
    sampler = trial.suggest_categorical("sample.sampler", ["natural", "balanced"])
    if sampler == "balanced":
        trial.suggest_float("sample.alpha", 0.5, 1.0)
    return {"decode.height": 128, "decode.width": 104}
"""
        found = space.load(written(tmp_path, code, "my.py") + ":own", Config())
        trials = drawn(found, 50)
        assert all(("sample.alpha" in trial) == (trial["sample.sampler"] == "balanced") for trial in trials)
        assert {space.apply(Config(), trial).decode.height for trial in trials} == {128}

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ('trial.suggest_float("lr", 0.1, 0.2)', "found lr"),
            ('trial.suggest_float("loss.focal_gamma", 0.1, 0.2)', "focal_gamma"),
            ("return [1]", "list"),
        ],
    )
    def test_settings_that_do_not_exist_or_do_nothing_are_errors(self, body: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=said):
            space.load(written(tmp_path, f"def space(trial):\n    {body}\n", "my.py"), Config())

    def test_a_file_without_the_function_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="function space"):
            space.load(written(tmp_path, "x = 1\n", "my.py"), Config())


def test_the_shipped_space_can_be_drawn_from_and_holds_the_default(tmp_path: Path) -> None:
    base = Config()
    found = space.load("default", base)
    known, missing = space.defaults(found, base)
    assert missing == []
    study = optuna.create_study()
    study.enqueue_trial(known)
    assert space.apply(base, found(study.ask())) == base
    kept = space.copy("default", tmp_path)
    assert drawn(space.load(kept, base), 20) == drawn(found, 20)


def test_a_base_that_the_space_lacks_is_told(tmp_path: Path) -> None:
    base = Config(sample=replace(Config().sample, batch_size=10), optim=replace(Config().optim, lr=1e-3))
    found = space.load(written(tmp_path, CONDITIONAL), base)
    known, missing = space.defaults(found, base)
    assert set(missing) == {"decode.height, decode.width"}
    assert known["optim.lr"] == 1e-3


@pytest.mark.parametrize(("rate", "missing"), [(1e-3, []), (2e-3, ["optim.lr"])])
def test_a_single_choice_that_is_not_the_bases_is_told_too(rate: float, missing: list[str], tmp_path: Path) -> None:
    base = Config(optim=replace(Config().optim, lr=1e-3))
    found = space.load(written(tmp_path, f"[optim]\nlr = [{rate}]\nwarmup_epochs = [0.0, 1.0]\n"), base)
    assert space.defaults(found, base) == (
        {"optim.warmup_epochs": 1.0, **({} if missing else {"optim.lr": rate})},
        missing,
    )


def checked(folder: Path, points: str, text: str = CONDITIONAL) -> list[Values]:
    """Points, held against a space."""
    file, found = Path(written(folder, points, "points.toml")), space.load(written(folder, text), Config())
    known = space.points(file)
    space.require_points(file, known, found, Config())
    return known


class TestPointsMeetTheSpace:
    def test_a_point_that_the_space_draws_is_what_a_trial_gets(self, tmp_path: Path) -> None:
        text = """
[[point]]
"decode.height, width" = [128, 104]
sample = {sampler = "balanced", alpha = 0.5}
[[point]]
decode = {"height, width" = [96, 80]}
"model.auxiliary" = ["view"]
"optim.lr" = 0.01
"""
        known = checked(tmp_path, text)
        found = space.load(written(tmp_path, CONDITIONAL), Config())
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for point in known:
            study.enqueue_trial(point)
        first, second = (found(study.ask()) for _ in known)
        assert (first["decode.height"], first["decode.width"], first["sample.alpha"]) == (128, 104, 0.5)
        assert (second["decode.width"], second["model.auxiliary"], second["optim.lr"]) == (80, ["view"], 0.01)

    @pytest.mark.parametrize(
        ("point", "said"),
        [
            ('"optim.learning_rate" = 1e-3', "optim.learning_rate: expected parameters of the space: .*optim.lr"),
            ('"optim.ema" = 0.9', "optim.ema: expected parameters of the space"),
            ('"sample.sampler" = "sqrt"', "sample.sampler: expected one of 'natural', .*, found 'sqrt'"),
            ('"optim.lr" = 0.5', "optim.lr: expected 0.0001 to 0.01, log, found 0.5"),
            ('"optim.lr" = "fast"', "optim.lr: expected 0.0001 to 0.01, log, found 'fast'"),
            ('"sample.batch_size" = 9', "batch_size: expected whole numbers 8 to 32 in steps of 8, found 9"),
            ('"sample.alpha" = 0.5', r"sample.alpha: expected a parameter .* in \d+ of 50 trials"),
            ('sample = {sampler = "natural", alpha = 0.5}', "sample.alpha: .* in 0 of 50 trials"),
            ('"decode.height" = 96', "decode.height: .* of the space: decode.height, decode.width"),
            ('"decode.height, width" = [96, 81]', "decode.height, decode.width: expected one of"),
        ],
    )
    def test_what_the_space_would_not_draw_is_an_error_of_file_point_and_key(
        self, point: str, said: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            checked(tmp_path, f'[[point]]\n"optim.optimizer" = "sgd"\n[[point]]\n{point}\n')
        assert caught.value.where.startswith(f"--points {tmp_path / 'points.toml'}: point 2: ")

    def test_a_single_choice_is_no_other(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"optim.lr: expected one of 0.001, found 0.002"):
            checked(tmp_path, '[[point]]\n"optim.lr" = 0.002\n', "[optim]\nlr = [0.001]\n")


def test_choices_that_change_from_trial_to_trial_are_an_error_before_anything_is_run(tmp_path: Path) -> None:
    code = """
def space(trial):
    high = trial.suggest_categorical("decode.height", [96, 128])
    trial.suggest_categorical("decode.width", [80] if high == 96 else [80, 104])
"""
    with pytest.raises(ConfigError, match="same choices in every trial"):
        space.load(written(tmp_path, code, "my.py"), Config())


def test_points_are_settings_by_dotted_name(tmp_path: Path) -> None:
    text = '[[point]]\n"optim.lr" = 1e-3\n[[point]]\nsample = {sampler = "balanced", alpha = 0.5}\n'
    assert space.points(Path(written(tmp_path, text, "points.toml"))) == [
        {"optim.lr": 1e-3},
        {"sample.sampler": "balanced", "sample.alpha": 0.5},
    ]
    with pytest.raises(ConfigError, match="point"):
        space.points(Path(written(tmp_path, "[optim]\nlr = 1e-3", "other.toml")))
