r"""The main job on a Ray cluster: catalog, split, decode, train, evaluate, report.

Takes the flags of ``mammoray train``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/train.py --csv train.csv --dicom-root RSNA --outdir runs/first --num-workers 1

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/train.py --csv /shared/rsna/train.csv --dicom-root /shared/rsna \
        --outdir /shared/runs/first --num-workers 8

Suits: decoding scales with CPU cores, training with GPUs, one per worker. The same job submitted again goes on with
the run where it stood. Time: that of ``jobs/prepare.py``, once, and of the epochs: 20 of RSNA are 393,000 images,
which take 22 minutes at 300 images/s a GPU (docs/cluster.md); the first epoch prints the rate of yours.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
