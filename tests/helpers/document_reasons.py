"""Commands of the documents that `test_commands_in_documents` does not run: the test that does, or why none can here.

A named test starts the same program, with folders and sizes of its own.
"""

TRAIN = "tests/launch/test_launch.py::test_cpu_2_is_bit_for_bit_one_process"
SLURM = "tests/slurm/test_slurm.py::test_two_nodes_give_the_bits_of_one_process"
DOCTOR = "tests/commands/test_doctor.py::test_two_processes_are_one_table"
EXPORT = "tests/commands/test_export.py::test_a_graph_gives_the_logits_of_the_run_for_any_number_of_images"
RESTART = "tests/faults/test_elastic.py::test_a_run_with_a_killed_worker_equals_an_uninterrupted_one"
JOINED = "tests/tracking/test_wandb_online.py::test_offline_parts_of_a_stopped_run_join_into_one"
AGENT = "tests/commands/test_sweep.py::test_wandb_sweep_and_wandb_agent_carry_out_the_same_file"
TWO = "tests/commands/test_sweep.py::test_two_runs_of_two_processes_get_their_parameters_on_both"
SWEEP = f"trains six networks; a sweep of two: {TWO}"
MISTAKE = "tests/commands/test_sweep.py::test_mistakes_are_one_line_before_anything_starts"
SAVED = "tests/commands/test_dashboard.py::test_both_are_saved_on_a_server"
PODS = "tests/launch/test_cluster_commands.py::test_two_pods_of_kubeflow_train_as_one_process"
HANG = "tests/test_commands_in_documents.py::test_the_hang_is_named_as_the_page_says"
TRACKERS = "tests/tracking/test_also_trackers.py::test_a_killed_and_resumed_run_is_one_run_with_each_row_once"
CI = "installs, checks or tests everything: .ci/run does it in a new environment"
DEMO = "serves until it is ended: tests/browser/test_demo_page.py::test_drawn_digits_are_recognised"
SCREEN = "fills a terminal until a key is pressed"
KEY = "needs a wandb key and wandb's server"

ELSEWHERE = {
    "pip install *": CI,
    "pytest -m faults": "takes 20 minutes",
    "pytest*": "is a test itself, or all of them",
    "python -m venv .venv": CI,
    ". .venv/bin/activate": CI,
    "ruff check .": CI,
    "ruff format --check .": CI,
    "mypy": CI,
    "lint-imports": CI,
    "bash .ci/run": CI,
    "mkdocs serve": "serves until it is ended; .ci/run and tests/test_site.py build the site",
    "accelerate launch -m mnist_dist.train": CI,
    "accelerate launch -m mnist_dist.train --run.dir=runs/a": KEY,
    "accelerate launch --config_file launch/single_gpu.yaml *": "needs a GPU",
    "accelerate launch --config_file launch/multi_gpu.yaml *": "needs several GPUs",
    "accelerate launch --config_file launch/multi_node.yaml *": "needs several machines with GPUs",
    "accelerate launch --config_file launch/multi_node_cpu.yaml *": "tests/launch/test_launch.py::"
    "test_two_machines_by_accelerate",
    "accelerate launch --config_file launch/fsdp2.yaml *": "tests/launch/test_launch.py::"
    "test_fsdp2_is_stopped_resumes_and_writes_the_same_files_as_any_other_run",
    "accelerate launch --config_file launch/cpu_1.yaml *": "tests/launch/test_launch.py::"
    "test_when_accelerate_is_killed_its_process_stops_with_a_checkpoint_and_resumes",
    "accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist.train": TRAIN,
    "accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist.train --run.dir=runs/stopped": TRAIN,
    "accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist.train --config debug --model.name=*": HANG,
    "accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist doctor *": DOCTOR,
    "accelerate launch --config_file launch/cpu_2.yaml --max_restarts 3 *": RESTART,
    "torchrun --standalone --nproc-per-node 2 -m mnist_dist.train": "tests/launch/test_launch.py::"
    "test_sigterm_to_torchrun_stops_three_processes_and_they_resume",
    "torchrun --standalone --nproc_per_node 2 --max_restarts 3 *": RESTART,
    "torchrun --nnodes 2 --node-rank R *": "tests/launch/test_launch.py::test_two_machines_by_torchrun",
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d *": "tests/machines/test_machines.py::"
    "test_two_machines_give_the_bits_of_one_process",
    "torchrun -m mnist_dist.train --run.dir=/runs/two": PODS,
    "python -m mnist_dist.train --run.dir=/runs/two": PODS,
    "kubectl apply *": f"needs a Kubernetes cluster; the command in the file: {PODS}",
    "sky jobs launch *": "needs a cloud; the command in the file: tests/launch/test_cluster_commands.py::"
    "test_two_nodes_of_skypilot_train_as_one_process",
    "podman *": "needs podman and the network; the file: tests/launch/test_cluster_files.py::"
    "test_hadolint_finds_nothing_in_the_containerfile_and_something_in_a_wrong_one",
    "mpirun *": "needs MPI; its variables: tests/distributed/test_cluster_launchers.py::"
    "test_processes_of_a_launcher_are_one_run",
    "srun python -m mnist_dist*": "needs an allocation of Slurm; its variables: tests/distributed/"
    "test_cluster_launchers.py::test_processes_of_a_launcher_are_one_run",
    "python benchmarks/*": "takes minutes to hours; its arguments: tests/benchmarks/test_scripts.py::"
    "test_commands_in_documents_parse",
    "benchmarks/gpu_checks.sh": "needs a GPU",
    "benchmarks/record.sh": "needs a GPU; rehearsed: tests/benchmarks/test_scripts.py::"
    "test_the_record_on_a_gpu_can_be_rehearsed_without_one",
    "mnist-dist repeat --config * --seeds *": "takes minutes to hours; a short one: tests/commands/test_repeat.py::"
    "test_what_it_says_and_records_is_what_the_runs_have",
    "salloc *": "needs a Slurm cluster",
    "sbatch launch/slurm/train.sbatch *": SLURM,
    "sbatch --nodes=2 --gpus-per-node=8 *": "needs a Slurm cluster with GPUs",
    "sbatch --array=0-9 launch/slurm/train.sbatch*": "tests/slurm/test_slurm.py::test_an_array_is_a_sweep_over_seeds",
    "ls runs/digits": "is a program of the system",
    "tail -f slurm-mnist_dist-12345.out": "waits until it is ended",
    "watch -n 5 mnist-dist status last": SCREEN,
    "mnist-dist demo RUN": DEMO,
    "mnist-dist doctor": "tests/commands/test_doctor.py::test_one_process",
    "mnist-dist data fetch --data.name=emnist-letters": "needs the network, and 560 MB",
    "mnist-dist export RUN --to torch-export": EXPORT,
    "mnist-dist export RUN --to onnx --int8": "tests/commands/test_export.py::test_int8_says_what_it_costs",
    "mnist-dist report runs/one runs/two *": "tests/tracking/test_report.py::"
    "test_several_runs_lie_over_each_other_and_what_differs_comes_first",
    "mnist-dist explain RUN *": "tests/commands/test_explain.py::test_a_picture_and_a_map_of_features",
    "mnist-dist sweep learning_rate": SWEEP,
    "mnist-dist sweep mine.yaml": MISTAKE,
    "mnist-dist dashboard --save*": SAVED,
    "wandb leet *": SCREEN,
    "wandb sync *": KEY,
    "wandb beta sync --id *": JOINED,
    "wandb beta sync --live *": KEY,
    "wandb artifact get *": KEY,
    "wandb sweep *": AGENT,
    "wandb agent *": AGENT,
    "export WANDB_API_KEY=...": KEY,
    "python -m mnist_dist.train --run.dir=runs/a --tracking.mode=offline": JOINED,
    "python -m mnist_dist.train --tracking.also=*": TRACKERS,
    "WANDB_PROJECT=digits WANDB_RUN_GROUP=old *": "tests/tracking/test_wandb_settings.py::"
    "test_labels_are_wandbs_and_the_runs_own_go_first",
}
"""Pattern of commands that are not run here (`*` stands for any text) to the test that runs them, or the reason."""
