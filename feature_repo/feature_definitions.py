"""All Feast objects of Larder: entities, feature views, the on-demand view and the feature services.

Feast imports every file of the repository by its bare name, so its objects stay in this one file; `.feastignore` keeps
Feast from the others. Layouts and features come from views.py, request_features.py and services.py.
"""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, FeastType, Float32, Float64, Int64, String

from feature_repo.request_features import INPUTS, OUTPUTS
from feature_repo.services import FEATURE_LISTS
from feature_repo.views import (
    CATALOG_FIELDS,
    CATALOG_VIEW,
    ITEM_STATS,
    RECENT_EVENTS,
    RECENT_FIELDS,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
    View,
)

_TYPES: dict[str, FeastType] = {"int64": Int64, "float64": Float64}
_CATALOG_TYPES = (String, String, Int64, Int64, Int64, Int64)
_CATALOG_DOCS = (
    "Title",
    "Category",
    "Price, minor units",
    "Creation (µs since the epoch, UTC)",
    "1 if available, else 0",
    "1 if an operator keeps it out of every list, else 0",
)
_RECENT_TYPES = (Array(String), Array(Int64), Array(Int64))
_RECENT_DOCS = ("Items", "Event type codes", "Feature times (µs since the epoch, UTC)")

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A user of the shop")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="An item of the catalogue")
category = Entity(
    name="category", join_keys=["category"], value_type=ValueType.STRING, description="A category of items"
)


def _feature_view(
    name: str, entities: list[Entity], fields: list[Field], doc: str, tags: dict[str, str]
) -> FeatureView:
    """Return a feature view over the parts of one of our views.

    `ttl` stays 0: Feast applies it offline only and drops rows there. Both our stores apply the tag `max_age_us`.
    """
    keys = [Field(name=entity.join_key, dtype=String) for entity in entities]  # given, so that Feast reads no file
    source = FileSource(name=f"{name}_parts", path=name, timestamp_field="valid_from", description=doc)
    return FeatureView(
        name=name,
        entities=entities,
        schema=[*keys, *fields],
        source=source,
        ttl=timedelta(0),
        description=doc,
        tags=tags,
    )


def _fold_view(view: View, *entities: Entity) -> FeatureView:
    fields = [Field(name=c.name, dtype=_TYPES[c.kind], description=c.doc) for c in view.columns]
    tags = {"prefix": view.prefix, "layout_hash": f"{view.layout_hash:016x}"}
    if view.max_age_us is not None:
        tags["max_age_us"] = str(view.max_age_us)
    return _feature_view(view.name, list(entities), fields, view.doc, tags)


user_stats = _fold_view(USER_STATS, user)
item_stats = _fold_view(ITEM_STATS, item)
user_item_interactions = _fold_view(USER_ITEM, user, item)
user_category_affinity = _fold_view(USER_CATEGORY, user, category)
user_recent_items = _feature_view(
    RECENT_VIEW,
    [user],
    [
        Field(name=name, dtype=dtype, description=doc)
        for name, dtype, doc in zip(RECENT_FIELDS, _RECENT_TYPES, _RECENT_DOCS, strict=True)
    ],
    f"The last {RECENT_EVENTS} events of a user other than impressions, oldest first.",
    {},
)
item_catalog = _feature_view(
    CATALOG_VIEW,
    [item],
    [
        Field(name=name, dtype=dtype, description=doc)
        for name, dtype, doc in zip(CATALOG_FIELDS, _CATALOG_TYPES, _CATALOG_DOCS, strict=True)
    ],
    "What an item is.",
    {},
)

# µs as Int64: Feast's UnixTimestamp keeps whole seconds only on its way through protobuf.
request = RequestSource(
    name="request",
    schema=[Field(name="now_us", dtype=Int64, description="Time of the request or of the label (µs, UTC)")],
)


def _inputs(view: FeatureView) -> FeatureView:
    """Narrow a view to what request-time features need: Feast hands out all columns of a source it is given whole."""
    return view[[field.name for field in view.features if field.name in INPUTS]]


@on_demand_feature_view(  # type: ignore[untyped-decorator] # Feast has no types
    name="ranking_features",
    sources=[
        _inputs(user_stats),
        _inputs(item_stats),
        _inputs(user_item_interactions),
        _inputs(user_category_affinity),
        _inputs(item_catalog),
        request,
    ],
    # Without descriptions: `apply` runs the function and wants exactly the fields it then infers.
    schema=[Field(name=name, dtype=Float32) for name, _ in OUTPUTS],
    mode="pandas",
    description="Features of a (user, item) at the time of a request, computed from the state of the other views.",
)
def ranking_features(inputs: pd.DataFrame) -> pd.DataFrame:
    """Compute the request-time features. Feast rebuilds this function from its text: what it needs is imported here."""
    import numpy as np
    import pandas as pd

    from feature_repo.request_features import INPUTS, compute

    columns = {name: inputs[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in INPUTS}
    return pd.DataFrame(compute(columns, inputs["now_us"].to_numpy(dtype=np.int64)), index=inputs.index)


# One service per feature list, as module attributes: that is where Feast looks for its objects.
for _name, _features in FEATURE_LISTS.items():
    globals()[_name] = FeatureService(name=_name, features=[ranking_features[list(_features)]])
