r"""What a trained network is worth on labelled images, on a Ray cluster: predictions, and metrics with intervals.

Takes the flags of ``mammoray evaluate``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/evaluate.py --checkpoint runs/first --csv new.csv --dicom-root NEW --outdir runs/external

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/evaluate.py --checkpoint s3://bucket/mammoray/first --dicom-root s3://bucket/new \
        --outdir external --storage s3://bucket/mammoray

Patients that the network has learned from are refused (--seen). Suits and time: those of ``jobs/predict.py``, and the
resamples of the intervals, seconds on one core.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
