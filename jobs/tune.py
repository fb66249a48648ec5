r"""A search for better settings on a Ray cluster: trials of training and validation patients, side by side.

Takes the flags of ``mammoray tune``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/tune.py --csv train.csv --dicom-root RSNA --outdir runs/search --num-trials 20

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/tune.py --csv /shared/rsna/train.csv --dicom-root /shared/rsna \
        --outdir /shared/runs/search --space /shared/space.toml --num-trials 40 --retrain-best

Suits: as many GPUs as there are; trials run side by side, and those that fall behind end early. The same job submitted
again goes on with the search. Time: about that of a training, times the trials, over the trials at once, less what is
ended early.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
