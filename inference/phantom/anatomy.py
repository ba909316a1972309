"""Anatomy of the phantom: a thorax drawn slice by slice from a few smooth shapes.

Sizes are those of an average adult; every length is in mm, LPS (x to the left, y to the back, z to the head).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.phantom.paint import Array, Canvas, Grid, occupancy, paint_path
from inference.types import Lobe

LABEL_RIGHT_LUNG = 1
LABEL_LEFT_LUNG = 2
LABEL_AIRWAY = 3
LABEL_FIRST_NODULE = 10

CARINA_Z = 28.0
RIGHT, LEFT = -1, 1  # sign of x


@dataclass(frozen=True)
class Plan:
    """The individual body, drawn from the seed.

    Parameters
    ----------
    scale
        Overall size in the axial plane.
    apex_z, dome_z
        Height of the lung apex and of the diaphragm dome, (right, left).
    fat_mm
        Thickness of the subcutaneous fat.
    heart
        Centre of the heart (z, y, x).
    lung_hu
        Mean of the lung parenchyma.
    waves
        Low-frequency warp of the outlines: (n, 7) wave numbers, phases and amplitudes.
    """

    scale: float
    apex_z: tuple[float, float]
    dome_z: tuple[float, float]
    fat_mm: float
    heart: tuple[float, float, float]
    lung_hu: float
    waves: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Plan:
        """Draw one body."""
        jitter = rng.uniform(-1, 1, 12)
        waves = np.column_stack(
            [
                rng.uniform(0.012, 0.045, (6, 3)),  # wave numbers along z, y, x, 1/mm
                rng.uniform(0, 2 * np.pi, (6, 3)),
                rng.uniform(0.7, 1.8, 6),
            ]
        )
        return cls(
            scale=float(0.97 + 0.03 * jitter[0]),
            apex_z=(float(120 + 6 * jitter[1]), float(123 + 6 * jitter[1] + 3 * jitter[2])),
            dome_z=(float(-58 + 8 * jitter[3]), float(-76 + 8 * jitter[4])),
            fat_mm=float(13 + 5 * jitter[5]),
            heart=(float(-40 + 5 * jitter[6]), float(-24 + 4 * jitter[7]), float(24 + 5 * jitter[8])),
            lung_hu=float(-855 + 25 * jitter[9]),
            waves=waves,
        )

    def warp(self, z: float, y: Array, x: Array) -> tuple[Array, Array]:
        """Displacement (dy, dx) in mm of the outlines on one slice, shape (y, x)."""
        shifts = []
        for rows in (self.waves[:3], self.waves[3:]):
            total = np.zeros((y.size, x.size), np.float32)
            for kz, ky, kx, pz, py, px, size in rows:
                in_y = np.sin(ky * y.ravel() + py + kz * z)
                in_x = np.sin(kx * x.ravel() + px + pz)
                total += (size * in_y[:, None] * in_x[None, :]).astype(np.float32)
            shifts.append(total)
        return shifts[0], shifts[1]


@dataclass(frozen=True)
class Profile:
    """Half-axes of rib cage and body on one height."""

    rib_x: float
    rib_y: float
    rib_centre_y: float
    body_x: float
    body_y: float
    body_centre_y: float


def profile(plan: Plan, z: float) -> Profile:
    """Size of rib cage (inner face) and body at height `z`."""
    rise = float(np.clip((126.0 - z) / 125.0, 0.0, 1.0))
    full = float(np.sqrt(1 - (1 - rise) ** 2))
    below = float(np.clip((-90.0 - z) / 120.0, 0.0, 1.0))
    shoulder = float(np.clip((z - 40.0) / 90.0, 0.0, 1.0))
    rib_x = (50 + 86 * full - 10 * below) * plan.scale
    rib_y = (46 + 54 * full - 4 * below) * plan.scale
    rib_centre_y = 3 + 20 * (1 - full)
    front = rib_centre_y - rib_y - 9 - 0.75 * plan.fat_mm
    back = 112 + 0.7 * plan.fat_mm + 4 * full
    body_x = (rib_x + 18 + plan.fat_mm) * (1 - shoulder) + (158 * plan.scale) * shoulder
    return Profile(
        rib_x=rib_x,
        rib_y=rib_y,
        rib_centre_y=rib_centre_y,
        body_x=float(min(body_x, 168)),
        body_y=(back - front) / 2,
        body_centre_y=(back + front) / 2,
    )


def superellipse(
    y: Array, x: Array, centre: tuple[float, float], half: tuple[float, float], power: float = 2.0
) -> Array:
    """Rough signed distance in mm to |x/a|^p + |y/b|^p = 1; `centre` and `half` are (y, x)."""
    ry = np.abs((y - np.float32(centre[0])) / np.float32(half[0]))
    rx = np.abs((x - np.float32(centre[1])) / np.float32(half[1]))
    # a float power is slow, and most shapes are plain ellipses
    radius = np.sqrt(ry * ry + rx * rx) if power == 2.0 else (ry**power + rx**power) ** (1 / power)
    return np.asarray((radius - 1) * min(half), dtype=np.float32)


def heart_distance(plan: Plan, z: float, y: Array, x: Array) -> Array:
    """Rough signed distance to the heart, an ellipsoid whose apex points left, forward and down."""
    long_axis = np.array([-0.50, -0.42, 0.76])
    long_axis /= np.linalg.norm(long_axis)
    dz, dy, dx = z - plan.heart[0], y - plan.heart[1], x - plan.heart[2]
    along = dz * long_axis[0] + dy * long_axis[1] + dx * long_axis[2]
    across2 = dz**2 + dy**2 + dx**2 - along**2
    radius = np.sqrt((along / 66.0) ** 2 + np.maximum(across2, 0) / 46.0**2)
    return np.asarray((radius - 1) * 46.0, dtype=np.float32)


def spine_distance(y: Array, x: Array) -> Array:
    """Signed distance to the vertebral body and its paravertebral soft tissue."""
    body = superellipse(y, x, (64.0, 0.0), (16.0, 19.0), 2.4)
    back = superellipse(y, x, (92.0, 0.0), (22.0, 16.0))
    return np.asarray(np.minimum(body, back))


def mediastinum_distance(z: float, y: Array, x: Array) -> Array:
    """Signed distance to the mediastinal band between the lungs."""
    half = 20 + 13 * np.exp(-(((z - 16) / 30) ** 2)) + 3 * np.clip((z - 70) / 50, 0, 1)
    narrow = np.clip((y + 78) / 45, 0, 1)
    swell = 4 * np.sin(0.055 * y + 0.02 * z) * np.sign(x) + 5 * np.exp(-(((y - 8) / 18) ** 2))
    knob = 9 * np.exp(-(((z - 58) / 12) ** 2) - ((y - 18) / 26) ** 2) * (x > 0)  # the aortic arch
    width = (half + swell + knob) * (0.2 + 0.8 * narrow**0.7)
    return np.asarray(np.abs(x - 2) - width, dtype=np.float32)


def lung_distance(plan: Plan, side: int, z: float, y: Array, x: Array) -> Array:
    """Rough signed distance in mm to one lung on one slice; the left lung is the smaller one."""
    number = 0 if side == RIGHT else 1
    rise = float(np.clip((plan.apex_z[number] - z) / 110.0, 0.0, 1.0))
    full = float(np.sqrt(max(1 - (1 - rise) ** 2, 1e-4)))
    u = x * side
    bend = np.float32(0.0014) * y * y
    centre, half_x = (40 + 23 * full) * plan.scale, (70 if side == RIGHT else 66) * full * plan.scale
    half_y = 93 * full**0.85 * plan.scale
    outline = superellipse(y, u + bend, (4 + 18 * (1 - full), centre), (half_y, half_x), 2.2)
    size = profile(plan, z)
    cage = superellipse(y, x, (size.rib_centre_y, 0.0), (size.rib_y - 3, size.rib_x - 3), 2.5)
    keep_out = np.minimum(mediastinum_distance(z, y, x), heart_distance(plan, z, y, x) - 4.0)
    keep_out = np.minimum(keep_out, spine_distance(y, x) - 2.5)
    if side == LEFT:
        keep_out = np.minimum(keep_out, superellipse(y, x, (47.0, 23.0), (13.0, 13.0)) - 2.0)
    keep_out = np.minimum(keep_out, diaphragm_height(plan, side, z, y, x))
    return np.asarray(np.maximum(np.maximum(outline, cage), -keep_out))


def diaphragm_height(plan: Plan, side: int, z: float, y: Array, x: Array) -> Array:
    """Height in mm of the slice above the diaphragm (negative below it)."""
    number = 0 if side == RIGHT else 1
    u = x * side
    radius2 = ((u - 58) / 74) ** 2 + ((y + 8) / 92) ** 2
    dome = plan.dome_z[number] - 66 * np.minimum(radius2, 1.6) ** 1.15
    return np.asarray((z - dome) * 0.75, dtype=np.float32)


def draw_slice(plan: Plan, z: float, y: Array, x: Array, width: float) -> tuple[Array, NDArray[np.uint8]]:
    """Draw everything but tubes, ribs and vessels.

    Parameters
    ----------
    z
        Height of the slice.
    y, x
        Open coordinates, shapes (ny, 1) and (1, nx).
    width
        Width of the soft edges, mm.

    Returns
    -------
    hu
        float32 (ny, nx).
    labels
        uint8 (ny, nx): right and left lung.
    """
    shift_y, shift_x = plan.warp(z, y, x)
    yy, xx = (y + shift_y).astype(np.float32), (x + shift_x).astype(np.float32)
    canvas = Canvas(z, yy, xx, np.full(yy.shape, -1000, np.float32), width)
    _draw_wall(plan, canvas)
    _draw_abdomen(plan, canvas)
    heart = heart_distance(plan, z, yy, xx)
    canvas.blend(np.maximum(heart, -_above_diaphragms(plan, z, yy, xx)), 38)
    _draw_spine(canvas.cut(_span(y[:, 0], 38, 130), _span(x[0], -55, 55)))
    labels = np.zeros(yy.shape, np.uint8)
    for side, label in ((RIGHT, LABEL_RIGHT_LUNG), (LEFT, LABEL_LEFT_LUNG)):
        half = np.flatnonzero(x[0] * side > -25)  # a lung hardly crosses the midline
        columns = slice(int(half[0]), int(half[-1]) + 1)
        part = canvas.cut(slice(None), columns)
        distance = lung_distance(plan, side, z, part.y, part.x)
        if float(distance.min()) > width:
            continue
        gravity = np.float32(0.45) * part.y  # dependent lung is denser
        parenchyma = plan.lung_hu + gravity + _fissures(side, part)
        part.blend(distance, np.asarray(parenchyma, np.float32))
        labels[:, columns][distance < 0] = label
    return canvas.values, labels


def _span(axis: Array, low: float, high: float) -> slice:
    """Indices of the coordinates between `low` and `high` on an ascending axis."""
    first, last = np.searchsorted(axis, [low, high])
    return slice(int(first), int(last))


def _oblique_height(side: int, z: float, y: Array, x: Array) -> Array:
    """Signed distance in mm to the oblique fissure, positive above and in front of it."""
    lean = z - (62 if side == LEFT else 54) + 1.05 * (62 - y) + 0.12 * np.abs(x)
    return np.asarray(lean / 1.45, dtype=np.float32)


def _horizontal_height(z: float, x: Array) -> Array:
    """Height in mm above the horizontal fissure of the right lung."""
    return np.asarray(z - (4 + 0.0016 * (x + 70) ** 2), dtype=np.float32)


def _fissures(side: int, canvas: Canvas) -> Array:
    """Extra HU of the oblique fissure and, on the right, the horizontal one: sheets thinner than a voxel."""
    oblique = _oblique_height(side, canvas.z, canvas.y, canvas.x)
    sheet = np.exp(-((oblique / canvas.width) ** 2))
    if side == RIGHT:
        level = _horizontal_height(canvas.z, canvas.x)
        sheet = np.maximum(sheet, np.exp(-((level / 1.6) ** 2)) * (oblique > 0) * 0.6)
    return np.asarray(130 * sheet, dtype=np.float32)


def lobe_at(plan: Plan, side: int, point: NDArray[np.float64]) -> Lobe:
    """Lobe of a point (z, y, x) in mm in the lung of this side, by the fissures as they are drawn."""
    z, y, x = (float(value) for value in point)
    shift_y, shift_x = plan.warp(z, np.array([y], np.float32), np.array([x], np.float32))
    drawn_y, drawn_x = y + shift_y, x + shift_x
    if _oblique_height(side, z, drawn_y, drawn_x).item() < 0:
        return Lobe.LOWER
    if side == RIGHT and _horizontal_height(z, drawn_x).item() < 0:
        return Lobe.MIDDLE
    return Lobe.UPPER


def _above_diaphragms(plan: Plan, z: float, y: Array, x: Array) -> Array:
    right = diaphragm_height(plan, RIGHT, z, y, x)
    left = diaphragm_height(plan, LEFT, z, y, x)
    return np.asarray(np.maximum(np.where(x < 0, right, left), np.float32((z + 96) * 0.9)))


def _draw_wall(plan: Plan, canvas: Canvas) -> None:
    """Skin, fat, muscle bundles with fat planes, rib-cage content (mediastinal fat), scapulae."""
    z, y, x = canvas.z, canvas.y, canvas.x
    size = profile(plan, z)
    furrow = np.float32(7) * np.exp(-((x / 14) ** 2)) * (y > 0)
    body = superellipse(y + furrow, x, (size.body_centre_y, 0.0), (size.body_y, size.body_x), 2.35)
    canvas.blend(body, 25)
    canvas.blend(body + 2.2, -104)
    angle = np.arctan2(x, -y)
    fat = plan.fat_mm * (0.75 + 0.35 * np.cos(2 * angle + 0.3)) + 2.5
    canvas.blend((body + fat).astype(np.float32), 52)
    cage = superellipse(y, x, (size.rib_centre_y, 0.0), (size.rib_y, size.rib_x), 2.5)
    bundles = np.abs(np.sin(0.16 * cage + 1.7 * np.sin(3 * angle + 0.02 * z))) - 0.16
    planes = np.maximum(bundles * 9, 9 - cage).astype(np.float32)
    planes = np.maximum(planes, (body + fat + 1.5).astype(np.float32))
    canvas.blend(planes, -85)
    _draw_scapula(canvas, cage)
    canvas.blend((cage - 5.5).astype(np.float32), 48)
    canvas.blend(cage, -96)
    if z > 70:  # muscles of the thoracic inlet around the apices
        bundles = 11 * np.sin(0.09 * x + 0.04 * z) * np.sin(0.08 * y + 1) + (104 - z) * 0.35
        canvas.blend(np.maximum(bundles, cage + 3).astype(np.float32), 45)
    half = 13.0 if z < 62 else 23.0
    if -55 < z < 102 and not 62 < z < 65:
        sternum = superellipse(y, x, (size.rib_centre_y - size.rib_y - 1.0, 0.0), (5.0, half), 2.6)
        canvas.blend(sternum, 360)
        canvas.blend(sternum + 1.8, 150)


def _draw_scapula(canvas: Canvas, cage: Array) -> None:
    z, y, x = canvas.z, canvas.y, canvas.x
    if not 5 < z < 145:
        return
    shrink = float(np.clip((z - 5) / 60, 0.1, 1))
    for side in (RIGHT, LEFT):
        u = x * side
        blade = np.abs(cage - 15 - 0.05 * (u - 90)) - 2.0
        span = np.abs(np.arctan2(u, y) - 0.98) - 0.36 * shrink
        canvas.blend(np.maximum(blade, span * 80).astype(np.float32), 430)
        if z > 70:
            spine = superellipse(y, u, (66 - 0.5 * (z - 70), 118.0), (7.0, 15.0))
            canvas.blend(spine, 380)
            canvas.blend(spine + 2.5, 160)


def _draw_spine(canvas: Canvas) -> None:
    """Vertebral body with cortex, disc, canal, arch and processes; one vertebra in 24 mm."""
    y, x = canvas.y, canvas.x
    phase = (canvas.z % 24.0) / 24.0
    muscle = np.minimum(
        superellipse(y, x, (98.0, 24.0), (15.0, 20.0)), superellipse(y, x, (98.0, -24.0), (15.0, 20.0))
    )
    canvas.blend(muscle, 55)
    body = superellipse(y, x, (64.0, 0.0), (14.5, 17.5), 2.5)
    if phase < 0.2:
        canvas.blend(body, 85)
    else:
        end_plate = 520 if phase < 0.28 or phase > 0.92 else 0
        canvas.blend(body, 430)
        canvas.blend(body + 2.0, max(170, end_plate))
    arch = superellipse(y, x, (87.0, 0.0), (13.0, 14.0))
    if 0.3 < phase < 0.85:
        canvas.blend(arch, 420)
        wings = superellipse(y, np.abs(x), (87.0, 24.0), (4.0, 13.0))
        canvas.blend(wings, 330)
    canvas.blend(superellipse(y, x, (87.0, 0.0), (8.0, 9.0)), 22)
    if 0.15 < phase < 0.75:
        process = superellipse(y, x, (106.0, 0.0), (11.0, 3.6))
        canvas.blend(process, 400)
        canvas.blend(process + 1.6, 190)


def _draw_abdomen(plan: Plan, canvas: Canvas) -> None:
    """Liver under the right dome, spleen and stomach with gas and fluid under the left one."""
    z, y, x = canvas.z, canvas.y, canvas.x
    if z > max(plan.dome_z) + 10:
        return
    size = profile(plan, z)
    cage = superellipse(y, x, (size.rib_centre_y, 0.0), (size.rib_y - 4, size.rib_x - 4), 2.5)
    right = diaphragm_height(plan, RIGHT, z, y, x)
    left = diaphragm_height(plan, LEFT, z, y, x)
    below = np.where(x < 0, right, left) + 1.5
    muscle = np.maximum(np.maximum(cage, below), -np.abs(x) + 8).astype(np.float32)
    canvas.blend(muscle, 50)
    inside = np.maximum(cage, below + 3.5).astype(np.float32)
    canvas.blend(inside, -98)
    edge = (x - 42 - 0.35 * y - 0.4 * (z + 90)).astype(np.float32)
    liver = np.maximum(np.maximum(inside + 1.0, edge), (y - 66 + 0.2 * x).astype(np.float32))
    canvas.blend(liver, 60)
    for centre, half, hu in (((44.0, 88.0), (42.0, 30.0), 50.0), ((-28.0, 66.0), (40.0, 42.0), 18.0)):
        top = float(np.sqrt(max(1 - (np.clip(z + 125, 0, 48) / 48) ** 2, 1e-3)))
        organ = superellipse(y, x, centre, (half[0] * top, half[1] * top))
        organ = np.maximum(organ, inside + 1.0)
        canvas.blend(organ, 45 if hu < 30 else hu)
        if hu < 30:
            canvas.blend(organ + 4, hu)
            canvas.blend(np.maximum(organ + 4, y + 34).astype(np.float32), -990)


def draw_tubes(values: Array, grid: Grid, plan: Plan) -> None:
    """Great vessels, oesophagus and the brachiocephalic branches, in place; 40 HU, no contrast medium."""
    heart_z = plan.heart[0]
    tubes: tuple[tuple[tuple[tuple[float, float, float], ...], tuple[float, ...], float], ...] = (
        # ascending aorta, arch, descending aorta: (z, y, x) mm
        (
            ((heart_z + 25, -22, 2), (20, -24, -12), (45, -20, -12), (60, -6, -4), (63, 12, 10), (54, 34, 20),
             (35, 46, 23), (-20, 47, 23), (-80, 48, 20), (-150, 50, 14)),
            (15, 16, 16, 14.5, 13.5, 13, 12.5, 12, 11.5, 11), 42),
        (((heart_z + 30, -2, -32), (30, -12, -31), (70, -14, -29), (90, -16, -26)), (11, 10, 9, 8), 41),
        (((heart_z + 30, -30, 18), (10, -24, 16), (20, -8, 10)), (15, 14, 13), 40),
        (((16, -6, 8), (12, 2, -14), (8, 8, -36)), (11, 10, 8), 40),
        (((20, -8, 12), (20, 2, 26), (16, 12, 36)), (11, 10, 8), 40),
        (((-20, 8, -18), (-28, 12, -34)), (8, 6), 40),
        (((-18, 10, 20), (-24, 16, 36)), (8, 6), 40),
        (((62, -8, -8), (90, -4, -20), (140, 6, -34)), (6.5, 6, 5), 42),
        (((63, 4, 2), (95, 4, 14), (140, 10, 24)), (5, 4.5, 4), 42),
        (((62, 14, 10), (95, 20, 26), (125, 14, 46), (138, 0, 80)), (5.5, 5, 5, 5), 42),
        (((85, -18, -24), (105, -14, 6), (125, -8, 34)), (7.5, 6.5, 6), 41),
        (((150, 34, 6), (60, 36, 4), (-20, 36, 6), (-90, 26, 14), (-120, 6, 34)), (6, 7, 7, 8, 9), 34),
    )  # fmt: skip
    for points, radii, hu in tubes:
        path, widths = smooth_path(np.array(points, float), np.array(radii, float))
        paint_path(values, grid, path, widths, hu)


def smooth_path(
    points: NDArray[np.float64], radii: NDArray[np.float64], step_mm: float = 5.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Resample a polyline with rounded corners (quadratic smoothing), about one point in `step_mm`."""
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = max(int(lengths[-1] / step_mm) + 1, 3)
    at = np.linspace(0, lengths[-1], count)
    path = np.column_stack([np.interp(at, lengths, points[:, k]) for k in range(3)])
    widths = np.interp(at, lengths, radii)
    for _ in range(2):
        path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
    return path, np.asarray(widths)


# a rib is higher than thick: (shift along z, radius, HU) of cortex and marrow
_RIB_LAYERS = ((2.2, 4.6, 520.0), (-2.2, 4.6, 520.0), (1.5, 2.7, 140.0), (-1.5, 2.7, 140.0))
# height, distance behind the front of the rib cage, distance from the midline
_CLAVICLE = ((100.0, 0.0, 22.0), (106.0, 4.0, 60.0), (114.0, 22.0, 105.0), (118.0, 36.0, 140.0))


def draw_bones(values: Array, grid: Grid, plan: Plan) -> None:
    """Twelve pairs of ribs with cortex and marrow, costal cartilage, sternum and clavicles, in place."""
    for side in (RIGHT, LEFT):
        for number in range(12):
            path = rib_path(plan, side, 122.0 - 21.5 * number, number)
            bone = len(path) if number > 9 else int(len(path) * 0.8)
            for offset, radius, hu in _RIB_LAYERS:
                shifted = path[:bone] + np.array([offset, 0, 0])
                paint_path(values, grid, shifted, np.full(bone, radius), hu)
            if number < 10 and bone < len(path):
                paint_path(values, grid, path[bone - 1 :], np.full(len(path) - bone + 1, 5.0), 95)
        clavicle = np.array([(z, front_of_cage(plan, z) + dy, x * side) for z, dy, x in _CLAVICLE])
        path, widths = smooth_path(clavicle, np.full(4, 6.0))
        paint_path(values, grid, path, widths, 520)
        paint_path(values, grid, path, widths - 2.2, 160)


def front_of_cage(plan: Plan, z: float) -> float:
    """The y of the front of the rib cage in the midline."""
    size = profile(plan, z)
    return size.rib_centre_y - size.rib_y


def rib_path(plan: Plan, side: int, z_back: float, number: int) -> NDArray[np.float64]:
    """Polyline (n, 3) of one rib from the spine around the cage; the front lies lower than the back."""
    last = 2.72 if number < 10 else 1.5
    angles = np.linspace(0.25, last, 34 if number < 10 else 20)
    drop = 28.0 + 4.5 * min(number, 8)
    points = []
    for angle in angles:
        z = z_back + 8 * np.sin(min(angle, 1.2)) - drop * (1 - np.cos(angle * 0.92)) / 1.9
        if number < 7 and angle > 2.1:
            z += 14 * (angle - 2.1)
        size = profile(plan, float(z))
        sine, cosine = np.sin(angle), np.cos(angle)
        reach = ((sine / (size.rib_x + 2.5)) ** 2.5 + (abs(cosine) / (size.rib_y + 2.5)) ** 2.5) ** (-1 / 2.5)
        points.append((z, size.rib_centre_y + reach * cosine, side * reach * sine))
    return np.array(points)


def draw_table(values: Array, grid: Grid, plan: Plan) -> None:
    """A carbon-fibre table under the back: thin shell, foam core, in place (all slices alike)."""
    y, x = grid.axis(1)[:, None], grid.axis(2)[None, :]
    sizes = [profile(plan, z) for z in (-100.0, 0.0, 60.0)]
    back = max(size.body_centre_y + size.body_y for size in sizes) + 6
    sag = back - np.float32(0.0009) * (x * x)
    slab = np.maximum(np.abs(y - sag - 12) - 12, np.abs(x) - 165).astype(np.float32)
    shell = occupancy(slab, 1.5) - occupancy(slab + 2.2, 1.5)
    core = occupancy(slab + 2.2, 1.5)
    empty = values < -900
    table = -1000 + shell * 780 + core * 60
    np.copyto(values, np.maximum(values, table[None]), where=empty)
