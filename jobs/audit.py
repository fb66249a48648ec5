r"""Look for what is wrong with a data set, on a Ray cluster, before anything is decoded or trained.

Takes the flags of ``mammoray audit``; paths are as every node of the cluster sees them, or URIs of a bucket.

On this machine::

    python jobs/audit.py --csv train.csv --dicom-root RSNA --outdir runs/audit

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/audit.py --dicom-root s3://bucket/rsna --outdir audit \
        --storage s3://bucket/mammoray --quarantine audit/quarantine.csv --pixels

Suits: CPU cores and a fast storage; no GPU. Time for the 54,706 files of RSNA: seconds for their heads from a disk
(7,000 files/s on two cores), minutes from a bucket; with --pixels, which decodes every image in full, 0.2 to 1 s of a
core each.

The exit status is 0 where the data set is fit, 1 where it is not, 2 where it could not be looked at.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
