#!/bin/bash
# One node, one process a GPU (DDP). Submit from the folder that holds the data: sbatch one_node.sh
# Ends itself cleanly before the time limit or when SLURM wants the node back, and is queued again until it is done.
#SBATCH --job-name=headcam
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4          # one process a GPU; srun starts them, headcam finds its place in SLURM's variables
#SBATCH --cpus-per-task=8            # loader processes (data.num_workers) and the training process share them
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180            # three minutes before the limit: the step is finished and last.ckpt written
#SBATCH --requeue                    # SLURM may queue the job again
#SBATCH --open-mode=append           # and its words go on in the same file
#SBATCH --output=%x-%j.out

# Effective batch: 42 a process x 4 processes = 168, the recipe's own. With another number of GPUs change
# --data.batch_size or --trainer.accumulate_grad_batches so that the product stays; a run that has begun insists on it.
srun headcam fit --config configs/ssl/headcam_mae_vith14_448.yaml --out runs/vith14_448 \
    --data.train='[frames]' --data.num_workers=7 \
    --trainer.devices=4 --trainer.num_nodes="$SLURM_NNODES" --trainer.strategy=ddp
status=$?

# 143: stopped between two steps with its checkpoint written. The same command then goes on where it stopped.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
