#!/bin/bash
# One node, weights and AdamW's moments spread over its GPUs (FSDP2), for what does not fit on one.
# `headcam fit ... --plan_memory true` says whether that is so.
#SBATCH --job-name=headcam
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# data_parallel_size is the number of processes; a checkpoint is one whole file, which any number of processes reads.
srun headcam fit --config configs/ssl/headcam_mae_vith14_448.yaml --out runs/vith14_448_sharded \
    --data.train='[frames]' --data.num_workers=7 \
    --trainer.devices=4 --trainer.num_nodes="$SLURM_NNODES" \
    --trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy \
    --trainer.strategy.data_parallel_size="$SLURM_NTASKS" --trainer.strategy.tensor_parallel_size=1 \
    --trainer.strategy.save_distributed_checkpoint=false
status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
