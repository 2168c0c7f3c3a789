#!/bin/bash
# Several nodes, one process a GPU (DDP). The folder, the data and the environment lie at the same paths on all of them.
#SBATCH --job-name=headcam
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# Effective batch: 21 a process x 8 processes = 168. A run begun with one_node.sh (42 x 4) goes on here, and back again.
srun headcam fit --config configs/ssl/headcam_mae_vith14_448.yaml --out runs/vith14_448 \
    --data.train='[frames]' --data.batch_size=21 --data.num_workers=7 \
    --trainer.devices=4 --trainer.num_nodes="$SLURM_NNODES" --trainer.strategy=ddp
status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
