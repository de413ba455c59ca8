# The development cluster: make cluster-up [HOSTS=4] [CPUS=8] [RATE=1gbit|10gbit|100mbit|none]
HOSTS ?= 4
CPUS ?= 8
RATE ?= 1gbit
DEVCLUSTER := python3 -m slurm.devcluster

.PHONY: cluster-packages cluster-up cluster-down cluster-status

cluster-packages: ## install the Debian packages that the development cluster runs on (needs root)
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
	    slurm-wlm munge iproute2 util-linux bubblewrap iperf3 dataset-fashion-mnist

cluster-up: ## bring up a SLURM cluster of HOSTS hosts with RATE links on this machine (needs root)
	@$(DEVCLUSTER) up --hosts $(HOSTS) --cpus $(CPUS) --rate $(RATE)

cluster-down: ## remove the SLURM cluster, its jobs and all its files
	@$(DEVCLUSTER) down

cluster-status: ## say which hosts are ready
	@$(DEVCLUSTER) status
