r"""The features that a trained network sees in images, on a Ray cluster, and classic baselines on them.

Takes the flags of ``mammoray embed``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/embed.py --checkpoint runs/first --csv train.csv --dicom-root RSNA --outdir runs/features --seen allow

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/embed.py --checkpoint s3://bucket/mammoray/first --dicom-root s3://bucket/rsna \
        --outdir features --storage s3://bucket/mammoray --seen allow

With --seen allow and the data of the run itself, the baselines learn from its training patients and are judged on its
test patients. Suits and time: those of ``jobs/predict.py``, and the fit of the baselines on one node.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
