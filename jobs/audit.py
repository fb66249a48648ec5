r"""Look for what is wrong with a data set, on a Ray cluster, before anything is decoded or trained.

Takes the flags of ``mammoray audit``; paths are as every node of the cluster sees them (a shared file system).

On this machine::

    python jobs/audit.py --csv train.csv --dicom-root RSNA --outdir runs/audit

On a cluster, from the root of this repository::

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/audit.py --csv /shared/rsna/train.csv --dicom-root /shared/rsna \
        --outdir /shared/runs/audit --quarantine /shared/runs/audit/quarantine.csv --pixels

The exit status is 0 where the data set is fit, 1 where it is not, 2 where it could not be looked at.
"""

import sys

from mammoray.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
