#!/usr/bin/env bash
# A search on the GPUs of several machines under Slurm: sbatch examples/cluster/slurm.sh
# A job that ends before the search does, by its time limit or a fault, is submitted again: the search goes on.
#SBATCH --job-name=autodiffusion
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:INT@120 # two minutes before the limit, as Ctrl-C: finish the blocks in work and keep them
set -euo pipefail

port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | cut -d ' ' -f 1)

# Ray on the first machine, then on the others; whoever reaches its ports can run code as you
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --node-ip-address="$address" --port=$port --include-dashboard=false --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$address:$port" --block &
fi

# in the background, so that the signal comes here at once and is passed on
autodiffusion search google/ddpm-cifar10-32 \
    --steps 6 --solver gls --reference cifar10/ \
    --device cuda --ray-address "$address:$port" --batch-size 16 --timeout 600 \
    --out runs/cifar10 &
search=$!
trap 'kill -INT $search' INT
# the first wait ends with the signal, the second with the search
wait $search || wait $search
