"""Listeners of gradients are freed when nothing else uses them, and so are their threads."""

import gc
import threading
import weakref

import torch
from torch import nn

from hpcopt.comm.world import alone
from hpcopt.exchange import Exchange, RingConfig
from hpcopt.hooks import after_accumulation


class Counter:
    """Counts backward passes."""

    def __init__(self):
        self.passes = 0

    def note(self, p):
        self.passes += 1


def test_a_listener_is_called_until_the_handle_is_removed():
    p, counter = nn.Parameter(torch.ones(3)), Counter()
    handle = after_accumulation(p, counter.note)
    p.sum().backward()
    p.sum().backward()
    assert counter.passes == 2
    handle.remove()
    p.sum().backward()
    assert counter.passes == 2


def test_a_listener_that_knows_its_parameter_is_freed():
    p, counter = nn.Parameter(torch.ones(3)), Counter()
    counter.parameter = p
    after_accumulation(p, counter.note)
    p.sum().backward()
    gone = weakref.ref(counter), weakref.ref(p)
    del counter, p
    gc.collect()
    assert [living() for living in gone] == [None, None]


def test_an_exchange_that_is_let_go_takes_its_network_and_its_thread_along():
    before, network = set(threading.enumerate()), nn.Linear(3, 2)
    exchange = Exchange(alone(), network, RingConfig())
    network(torch.ones(2, 3)).sum().backward()
    exchange.finish()
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(exchange), weakref.ref(network)
    del exchange, network
    gc.collect()
    assert [living() for living in gone] == [None, None]
    thread.join()
