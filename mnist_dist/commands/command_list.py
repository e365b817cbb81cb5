"""The commands of `mnist-dist`, each with its purpose in a few words."""

COMMANDS = {
    "train": "train a network; the same as python -m mnist_dist.train",
    "status": "say where a run is, while it runs and afterwards",
    "evaluate": "compute a run's metrics on a split, on any number of processes",
    "predict": "classify pictures, or images of MNIST, with a run's network",
    "runs": "list runs with their results, and what differs between them",
    "compare": "say what differs between two runs, bit for bit",
    "report": "write the report of a run, or of several, as one HTML file",
    "explain": "draw what the network sees, or the features of the test set",
    "export": "write a run's network as ONNX, torch.export, or for the Hub",
    "demo": "draw digits on a page, and see them recognised",
    "models": "list the networks: parameters, FLOPs, layers and their shapes",
    "data": "fetch, check or show the data",
    "config": "print the JSON schema of the settings, for editors",
    "doctor": "check whether a run would work here, and say what to do if not",
    "sweep": "start runs that differ in some settings: wandb's sweeps, no server",
    "repeat": "train a recipe with several seeds: mean, interval, p, by one table",
    "ensemble": "average what several runs predict on the test set",
    "dashboard": "make a wandb workspace and report, as JSON or on a server",
    "completion": "print a script that completes all this in a shell",
}
