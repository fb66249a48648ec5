r"""A patient-grouped K-fold cross-validation on a Ray cluster: the main job, once for each part of the patients.

Takes the flags of ``mammoray crossval``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/crossval.py --csv train.csv --dicom-root RSNA --outdir runs/cv --folds 5

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/crossval.py --csv /shared/rsna/train.csv --dicom-root /shared/rsna \
        --outdir /shared/runs/cv --folds 5

Suits: what ``jobs/train.py`` suits. Time: the files are decoded once; training takes --folds
times as long.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["crossval", *sys.argv[1:]]))
