"""The blocks that are resident together: their state, and the loop that executes instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .barriers import MemoryBarriers, NamedBarriers
from .bulk import BulkEngine
from .clocks import Clocks
from .cp_async import AsyncCopies
from .errors import BarrierError, SimulationError, UnknownInstructionError
from .matrix_queue import MatrixQueue
from .memory import GlobalMemory, LocalMemory, SharedMemory
from .ordering import Ordering
from .registers import LANE, LANES, Gang, Unwritten
from .shadow import GlobalShadow, Shadow, SharedShadow

if TYPE_CHECKING:
    from .bank_conflicts import BankConflicts
    from .program import Program

DONE = 1 << 30  # the program counter of a thread that has left


class Wave:
    """State of `blocks` blocks of `warps` warps; row warp * blocks + block is one warp."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        ids: list[tuple[int, int, int]],
        memory: GlobalMemory,
        parameters: np.ndarray,
        shared_bytes: int,
        random: np.random.Generator | None,
    ) -> None:
        self.program, self.grid, self.block, self.ids = program, grid, block, ids
        self.blocks = len(ids)
        threads = int(np.prod(block))
        self.warps = -(-threads // LANES)
        self.rows = self.warps * self.blocks
        self.random = random
        self.registers: list[Any] = [Unwritten(name) for name in program.kernel.registers]
        self.symbols = program.symbols
        self.clocks = Clocks(self.rows, self.blocks, program.bulk_slots)
        self.memory, self.parameters = memory, parameters
        self.global_shadow: GlobalShadow
        self.shared = SharedMemory(self.blocks, shared_bytes)
        self.shared_shadow = SharedShadow(
            self.shared.bytes.size, program.shared_granule, self.clocks
        )
        self.local = LocalMemory(self.rows * LANES, program.local_bytes)
        self.pc = np.zeros((self.rows, LANES), np.int64)
        thread = np.arange(self.rows)[:, None] // self.blocks * LANES + LANE
        self.pc[thread >= threads] = DONE
        self.thread = thread
        self.blocked = np.zeros((self.rows, LANES), np.bool_)
        self.waiting: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.reasons: dict[int, Any] = {}
        self.barriers, self.mbarriers = NamedBarriers(self), MemoryBarriers(self)
        self.copies, self.engine, self.matrix = (
            AsyncCopies(self),
            BulkEngine(self),
            MatrixQueue(self),
        )
        self.order = Ordering(self)
        self.wgmma_pending = 0
        self.banks: BankConflicts | None = None
        self.executed = self.steps = self.at = 0
        self._special: dict[str, np.ndarray] = {}

    # -- running ---------------------------------------------------------------------------------

    def run(self, gang: Gang, pc: int, stops: set[int], ceiling: int, quota: int) -> bool:
        """Executes until the gang splits, waits, leaves or meets others; False: quota used up."""
        steps, decode = self.program.steps, self.program.decode
        width, left = len(gang.rows), quota
        try:
            while True:
                step = steps[pc] or decode(pc)
                left -= 1
                self.at = pc
                acting = gang
                if step.guard is not None:
                    taken = step.guard(self, gang)
                    if step.negated:
                        taken = ~taken
                    if gang.mask is not None:
                        taken = taken & gang.mask
                    if step.jumps:
                        after = self.jump(gang, taken, pc, step.target)
                        if after < 0:
                            return True
                        pc = after
                    elif not taken.any():
                        pc += 1
                    else:
                        if not taken.all():
                            acting = gang.narrowed(taken)
                        pc += 1
                        if (stay := step.run(self, acting)) is not None:
                            self.settle(gang, acting, pc, stay)
                            return True
                elif step.jumps:
                    pc = step.target
                else:
                    pc += 1
                    if (stay := step.run(self, acting)) is not None:
                        self.settle(gang, acting, pc, stay)
                        return True
                if pc in stops or pc > ceiling or left <= 0:
                    self.set_pc(gang, pc)
                    return left > 0
        except SimulationError as error:
            if not error.args or "PTX line" not in error.args[0]:
                where = self.program.kernel.instructions[self.at].where()
                error.args = (f"{error.args[0]}\n  at {where}\n  in {self.describe_gang(gang)}",)
            raise
        finally:
            self.steps += quota - left
            self.executed += (quota - left) * width

    def jump(self, gang: Gang, taken: np.ndarray, pc: int, target: int) -> int:
        """Where the gang goes on together; -1 if it splits."""
        if not taken.any():
            return pc + 1
        if taken.all() or (gang.mask is not None and (taken == gang.mask).all()):
            return target
        self.set_pc(gang, pc + 1)
        self.set_pc(gang.narrowed(taken), target)
        return -1

    def settle(self, gang: Gang, acting: Gang, pc: int, stay: Any) -> None:
        """After an instruction that waits: `stay` are the lanes that execute it once more."""
        where = np.full((len(gang.rows), LANES), pc)
        moving = gang.full_mask & (self.pc[gang.rows] != DONE)
        if stay is REDIRECTED:
            moving &= ~acting.full_mask
        elif stay is not YIELD:
            where[stay & acting.full_mask] = pc - 1
        current = self.pc[gang.rows]
        np.copyto(current, where, where=moving)
        self.pc[gang.rows] = current

    def set_pc(self, gang: Gang, pc: int) -> None:
        if gang.mask is None:
            self.pc[gang.index] = pc
        else:
            current = self.pc[gang.rows]
            current[gang.mask] = pc
            self.pc[gang.rows] = current

    def leave(self, gang: Gang) -> Any:
        """exit and ret: these threads are done."""
        rows, lanes = gang.flat()
        self.pc[rows, lanes] = DONE
        self.copies.leave(gang)
        self.engine.leave(gang)
        self.barriers.after_exit(np.unique(rows % self.blocks))
        return YIELD

    def redirect(self, rows: np.ndarray, lanes: np.ndarray, targets: np.ndarray) -> Any:
        """brx: every lane goes on where its table says."""
        self.pc[rows, lanes] = targets
        return REDIRECTED

    # -- waiting ---------------------------------------------------------------------------------

    def wait(self, key: Any, rows: np.ndarray, mask: np.ndarray, reason: Any) -> None:
        """Blocks lanes until somebody wakes `key`; reason() is what a deadlock's report says."""
        self.blocked[rows] |= mask
        self.waiting.setdefault(key, []).append((rows, mask))
        for row in rows:
            self.reasons[int(row)] = reason

    def wake(self, key: Any) -> None:
        for rows, mask in self.waiting.pop(key, ()):
            self.blocked[rows] &= ~mask

    def alive(self, rows: np.ndarray) -> np.ndarray:
        return self.pc[rows] < DONE

    def whole_warps(self, gang: Gang, what: str) -> Gang:
        """The gang as whole warps; an aligned collective that lacks a live lane is an error."""
        gang = gang.compact()
        if gang.mask is None:
            return gang
        missing = self.alive(gang.rows) & ~gang.mask
        if missing.any():
            row = int(np.nonzero(missing.any(1))[0][0])
            lanes = ", ".join(map(str, np.nonzero(missing[row])[0][:6]))
            raise BarrierError(
                f"divergent {what}: lanes {lanes} of {self.describe_agent(int(gang.rows[row]))} "
                "are elsewhere"
            )
        return gang

    # -- names -----------------------------------------------------------------------------------

    def special(self, name: str) -> np.ndarray:
        found = self._special.get(name)
        if found is None:
            found = self._special[name] = self._make_special(name)
        return found

    def _make_special(self, name: str) -> np.ndarray:
        x, y, _ = self.block
        warp = np.arange(self.rows)[:, None] // self.blocks
        ids = np.array(self.ids)[np.arange(self.rows) % self.blocks]
        column = np.ones((self.rows, 1), np.int64)
        table: dict[str, Any] = {
            "%tid.x": self.thread % x,
            "%tid.y": self.thread // x % y,
            "%tid.z": self.thread // (x * y),
            "%laneid": np.broadcast_to(LANE, (self.rows, LANES)),
            "%warpid": warp,
            "%nwarpid": column * self.warps,
            "%smid": (np.arange(self.rows) % self.blocks)[:, None],
            "%nsmid": column * self.blocks,
            "%lanemask_eq": np.broadcast_to(1 << LANE, (self.rows, LANES)),
            "%lanemask_lt": np.broadcast_to((1 << LANE) - 1, (self.rows, LANES)),
            "%lanemask_le": np.broadcast_to((2 << LANE) - 1, (self.rows, LANES)),
            "%lanemask_gt": np.broadcast_to(((1 << 32) - 1) ^ ((2 << LANE) - 1), (self.rows, 32)),
            "%lanemask_ge": np.broadcast_to(((1 << 32) - 1) ^ ((1 << LANE) - 1), (self.rows, 32)),
            "%cluster_ctarank": column * 0,
            "%cluster_nctarank": column,
            "%dynamic_smem_size": column * self.program.dynamic_bytes,
            "%total_smem_size": column * self.shared.size,
        }
        for axis, letter in enumerate("xyz"):
            table[f"%ntid.{letter}"] = column * self.block[axis]
            table[f"%nctaid.{letter}"] = column * self.grid[axis]
            table[f"%ctaid.{letter}"] = ids[:, axis : axis + 1]
            table[f"%cluster_ctaid.{letter}"] = column * 0
            table[f"%cluster_nctaid.{letter}"] = column
            table[f"%clusterid.{letter}"] = ids[:, axis : axis + 1]
        if name in ("%clock", "%clock64", "%globaltimer", "%globaltimer_lo"):
            return column * self.steps
        if name not in table:
            raise UnknownInstructionError(f"special register {name}")
        return np.asarray(table[name], np.int64)

    def describe_agent(self, agent: int) -> str:
        if agent < self.rows:
            return f"block {self.ids[agent % self.blocks]} warp {agent // self.blocks}"
        if agent < self.clocks.departed:
            block = (agent - self.rows) // self.clocks.slots
            return f"a bulk copy of block {self.ids[block]}"
        return "a block that has left"

    def describe_thread(self, row: int, lane: int) -> str:
        return self.describe_agent(row) + (f" lane {lane}" if 0 <= lane < LANES else "")

    def describe_gang(self, gang: Gang) -> str:
        more = f" and {len(gang.rows) - 1} more" if len(gang.rows) > 1 else ""
        return self.describe_agent(int(gang.rows[0])) + more

    def describe_offset(self, shadow: Shadow, offset: int) -> str:
        if shadow is self.shared_shadow:
            return f"byte {offset % self.shared.stride}"
        return f"address {hex(offset + (1 << 33))}{self.memory.nearest(offset + (1 << 33))}"

    def register_name(self, number: int) -> str:
        return list(self.program.kernel.registers)[number]

    def check_accumulator(self, gang: Gang, number: int, name: str) -> None:
        self.matrix.check_register(gang, number, name)


class _Yield:
    """An instruction after which somebody else should be looked for; it is not repeated."""


YIELD = _Yield()
REDIRECTED = _Yield()
