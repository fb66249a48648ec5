r"""Decode a whole data set on a Ray cluster, before any training: rows of a table to the decoded cache.

Takes the flags of ``mammoray prepare``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/prepare.py --csv train.csv --dicom-root RSNA --outdir runs/prepared

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/prepare.py --dicom-root s3://bucket/rsna --outdir prepared \
        --storage s3://bucket/mammoray

Suits: machines without a GPU; decoding scales with CPU cores. Time for the 54,706 images of RSNA: 43 minutes on one
core, 3 on 16 (docs/cluster.md). The same job submitted again decodes what is missing.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
