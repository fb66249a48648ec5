r"""Scores of new images, breasts and patients by a trained network, on a Ray cluster; research only, not for diagnosis.

Takes the flags of ``mammoray predict``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/predict.py --checkpoint runs/first --dicom-root NEW --outdir runs/scores

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/predict.py --checkpoint s3://bucket/mammoray/first --dicom-root s3://bucket/new \
        --outdir scores --storage s3://bucket/mammoray

Suits: CPU cores for the decoding, and any GPU for a large network. Time: that of ``jobs/prepare.py`` for images that
are not in the cache, and a forward pass of each, 0.2 to 0.25 of a training step. The same job submitted again decodes
only what is missing, and predicts anew.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
