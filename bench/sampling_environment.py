"""What the commands that sample set; import it before torch, which asks once how threads wait for each other."""

from flows.services import environment

environment.set_defaults(environment.SAMPLING)
