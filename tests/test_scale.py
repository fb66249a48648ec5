import math
from typing import Any

import pytest

from mammoray.errors import ConfigError
from mammoray.scale import Scale, Where


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scale(num_workers=0),
        lambda: Scale(num_workers=2, min_workers=3),
        lambda: Scale(gpus_per_worker=0.0),
        lambda: Scale(gpus_per_worker=1.5),
        lambda: Scale(gpus_per_worker=math.inf),
        lambda: Scale(gpus_per_worker=0.5, num_workers=2),
        lambda: Scale(cpus_per_worker=math.inf),
    ],
)
def test_settings_out_of_range_are_errors(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("kind", [Where, Scale])
def test_a_storage_with_a_secret_is_refused_without_it(kind: type[Where]) -> None:
    with pytest.raises(ConfigError, match="--storage") as error:
        kind(storage="s3://me:sesame@bucket/prefix")
    assert "sesame" not in str(error.value)


def test_only_a_worker_without_company_can_share_a_gpu() -> None:
    assert Scale(gpus_per_worker=0.25).gpus_per_worker == 0.25
    assert Scale(gpus_per_worker=2.0, num_workers=2).gpus_per_worker == 2
    with pytest.raises(ConfigError, match=r"--gpus-per-worker.*NCCL"):
        Scale(gpus_per_worker=0.25, num_workers=2)
