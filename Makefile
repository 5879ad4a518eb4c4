# The commands of the project. Nothing is written outside this folder, but for temporary folders, which go with the command.
#
#   make run      the whole system on this machine, with a bot to talk to and a web page; Ctrl-C ends it
#   make demo     the same, scripted: deploys, a kill, a rotation; proves that nothing is lost
#   make test     all tests
#   make lint     what CI checks besides
#   make simulate SEEDS=n   whole systems in simulated time, from one seed each: 200 if not said
#   make campaign real faults under traffic, for hours; SHORT=1: in at most 20 minutes, as CI does
#   make bench    how fast it is beside its peers; 16 minutes, on a machine that does nothing else; with strace, a slow disk too
#   make soak     an hour of steady load, and half an hour on growth and purges; must end as it began
#   make clean    removes what the others made
#
# PYTHON=python3.12 chooses another interpreter, 3.11 or newer, for which .venv is made anew where it is of another version;
# LOCAL_POSTGRES=system the machine's own Postgres, LOCAL_PAGE_PORT=n another port than 8080 for the web page.

PYTHON ?= python3
VENV = .venv
LOCK = requirements.lock
# Most tests wait for processes and databases rather than for a core.
TEST_JOBS = 4
IN_VENV = $(VENV)/bin/python
SAY_VERSION = 'import sys; print("%d.%d" % sys.version_info[:2])'
# The version of a PYTHON that somebody names; nothing where nobody does: then any .venv will do that works.
ASKED := $(if $(filter-out file,$(origin PYTHON)),-$(shell "$(PYTHON)" -c $(SAY_VERSION) 2> /dev/null))
# Named after the lock file's content, so that a changed lock is installed and a touched one is not.
OF_LOCK = $(VENV)/.installed-$(shell cksum < $(LOCK) | tr ' ' '-')
INSTALLED = $(OF_LOCK)$(ASKED)

.PHONY: run demo test lint clean simulate campaign bench soak measure

run: $(INSTALLED)
	@$(IN_VENV) -m deploy.local run

demo: $(INSTALLED)
	@$(IN_VENV) -m deploy.local demo

test: $(INSTALLED)
	$(IN_VENV) -m pytest -n $(TEST_JOBS)

simulate: $(INSTALLED)
	$(IN_VENV) -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED))

campaign: $(INSTALLED)
	$(IN_VENV) -m tests.campaign $(if $(SHORT),--short --jobs 2)

# In an environment of its own: what production has, and the peers.
bench:
	@$(MAKE) --no-print-directory measure VENV=.venv-bench LOCK=bench/requirements.lock

soak:
	@$(MAKE) --no-print-directory measure PARTS="soak growth" VENV=.venv-bench LOCK=bench/requirements.lock

measure: $(INSTALLED)
	@$(IN_VENV) -m bench $(PARTS) --write-docs

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) .venv-bench .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED):
	@command -v "$(PYTHON)" > /dev/null || { \
	  echo "no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1): need Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) has no venv and ensurepip: install them (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || \
	  echo "$$("$(PYTHON)" -V 2>&1) is newer than what is tested, 3.11 to 3.13; where it fails: make PYTHON=python3.13" >&2
	@{ $(IN_VENV) -m pip --version > /dev/null 2>&1 \
	  && { [ -z "$(ASKED)" ] || [ "$(ASKED)" = "-$$($(IN_VENV) -c $(SAY_VERSION))" ]; }; } \
	  || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "installing what $(LOCK) names into $(VENV); once, about 20 seconds"
	@$(IN_VENV) -m pip install --quiet --disable-pip-version-check --no-input --no-cache-dir \
	  --no-warn-script-location --root-user-action=ignore --require-hashes -r $(LOCK)
	@rm -f $(VENV)/.installed-*
	@touch $(OF_LOCK) $@
