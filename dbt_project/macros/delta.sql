{#
    The materialization `delta`: a model's rows go to the Delta table `<lake>/<model>`, and its
    name in DuckDB is a view over that table. Options: see udfs/lake.py.

    An SQL model is compiled, handed to the plugin as text and streamed from DuckDB into the
    table; a Python model's rows are streamed as they come. A model that is pinned to a version of
    another lake's table is not run: its view is over that version (udfs/pinning.py).

    The constraint `not_null` of a column is kept while rows are written, so that a row without a
    value never gets into the table and no test has to look for one in each build.
#}
{% materialization delta, adapter="duckdb", supported_languages=["sql", "python"] %}

    {#- dbt's own default, `ignore`, is never what a lake wants: it stands for `fail` here. -#}
    {%- set on_schema_change = config.get("on_schema_change") -%}
    {%- set not_null = [] -%}
    {%- for column in model["columns"].values() -%}
        {%- if column["constraints"] | selectattr("type", "equalto", "not_null") | list -%}
            {%- do not_null.append(column["name"]) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set options = {
        "strategy": config.get("strategy"),
        "unique_key": config.get("unique_key"),
        "delete_when_null": config.get("delete_when_null"),
        "partition_by": config.get("partition_by"),
        "table_properties": config.get("table_properties"),
        "on_schema_change": none if on_schema_change == "ignore" else on_schema_change,
        "commit": config.get("commit"),
        "not_null": not_null,
    } -%}
    {%- set target = this.incorporate(type="view") -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set table = delta_table(this.identifier) -%}
    {%- if not table.is_pinned and model["language"] == "python" -%}
        {%- set columns = {} -%}
        {%- for name, column in model["columns"].items() -%}
            {%- do columns.update({name: column["data_type"]}) -%}
        {%- endfor -%}
        {%- call statement("main", language="python") -%}
{{ compiled_code }}

def materialize(result, connection):
    from udfs.dbt_plugin import store_python_model

    store_python_model(
        result,
        {{ tojson(this.identifier) }},
        {{ tojson(tojson({"options": options, "columns": columns})) }},
    )
        {%- endcall -%}
    {%- elif not table.is_pinned -%}
        {%- if load_cached_relation(this) is none and is_delta_incremental() -%}
            {#- Models that add to their table read it by its view, and the file of views may have
            been deleted. Outside of a transaction, because the plugin has a cursor of its own. -#}
            {%- call statement("own_view", auto_begin=false) -%}
                create view if not exists {{ target }} as
                select * from {{ table.scan }}
            {%- endcall -%}
        {%- endif -%}
        {%- if config.get("contract").enforced -%}
            {{ get_assert_columns_equivalent(sql) }}
        {%- endif -%}
        {%- set inputs = delta_inputs(model) -%}
        {%- do adapter.store_relation(
            "delta",
            target,
            [],
            "",
            "delta",
            {
                "sql": sql,
                "options": options,
                "inputs": inputs,
                "vars": delta_vars(inputs),
                "full_refresh": should_full_refresh(),
            },
        ) -%}
    {%- endif -%}

    {%- call statement("create_view") -%}
        create or replace view {{ target }} as
        select * from {{ table.scan }}
    {%- endcall -%}
    {%- if table.is_pinned or model["language"] == "sql" -%}
        {# dbt asks every materialization for a main statement. #}
        {%- call noop_statement("main", "OK") -%} {%- endcall -%}
    {%- endif -%}
    {%- do persist_docs(target, model) -%}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}

    {{ return({"relations": [target]}) }}

{% endmaterialization %}


{#
    What a table of the lake is read by (`scan`), and whether it is pinned (`is_pinned`), by the
    vars of this run or by those that began the lake.
#}
{% macro delta_table(name) %}
    {%- if var("pinned_versions", none) -%}
        {%- do run_query(
            "select pin_tables(" ~ text_literal(tojson(var("pinned_versions"))) ~ ", "
            ~ text_literal(var("pinned_lake", none)) ~ ")"
        ) -%}
    {%- endif -%}
    {%- set name = dbt.string_literal(name) -%}
    {%- set found = run_query("select table_scan(" ~ name ~ "), table_is_pinned(" ~ name ~ ")") -%}
    {{ return({"scan": found.rows[0][0], "is_pinned": found.rows[0][1]}) }}
{% endmacro %}


{#
    The vars that decide what the views between ratings and curation are, for a table that is made
    through them; its commit records them, so that a replay has the same views.
#}
{% macro delta_vars(inputs) %}
    {%- set found = {} -%}
    {%- if "raters" in inputs -%}
        {%- for name in [
            "rater",
            "rater_model",
            "rater_parameters",
            "rater_template",
            "rater_context_tokens",
            "rater_long",
            "rater_committee",
            "rater_aggregate",
            "rater_min_votes",
            "rater_tie_breaker",
            "rater_skip_refuted",
            "success_label",
        ] -%}
            {%- do found.update({name: var(name)}) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(found) }}
{% endmacro %}


{#
    What a node reads, through views: a mapping of Delta tables (null: their version is looked
    up), of seeds (their checksum) and of views (a hash of their SQL as it stands).
#}
{% macro delta_inputs(node) %}
    {%- set found = {} -%}
    {%- for id in node["depends_on"]["nodes"] if id in graph["nodes"] -%}
        {%- set upstream = graph["nodes"][id] -%}
        {%- set name = upstream["name"] -%}
        {%- if upstream["config"]["materialized"] == "delta" -%}
            {%- do found.update({name: none}) -%}
        {%- elif upstream["resource_type"] == "seed" -%}
            {%- do found.update({name: upstream["checksum"]["checksum"]}) -%}
        {%- else -%}
            {%- do found.update({name: view_hash(name)}) -%}
            {%- do found.update(delta_inputs(upstream)) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(found) }}
{% endmacro %}


{# A hash of a view's SQL, with all that macros and vars put into it. #}
{% macro view_hash(name) %}
    {%- set found = run_query(
        "select md5(sql) from duckdb_views() where view_name = " ~ dbt.string_literal(name)
    ) -%}
    {{ return(found.columns[0].values()[0]) }}
{% endmacro %}


{#
    Marks a model's SQL with what its stored rows depend on beside its inputs, such as parser
    versions. When the key differs from the one its newest version was built with, the model is
    built anew, and `is_delta_incremental` is false.
#}
{% macro rebuild_on(key) %}/* trajlake:rebuild_key={{ key }} */{% endmacro %}


{# Whether a model's own table is there and may be added to. #}
{% macro is_delta_incremental(key=none) %}
    {%- if not execute or should_full_refresh() -%} {{ return(false) }} {%- endif -%}
    {%- set state = run_query(
        "select table_rebuild_key(" ~ dbt.string_literal(this.identifier) ~ ")"
    ).columns[0].values()[0] -%}
    {{ return(state is not none and (key is none or state == key)) }}
{% endmacro %}


{#
    The trajectories that the model's own table, with a row per trajectory, has not or has with
    another content, since they have grown; all of them where there is no table to add to.

    The table is read twice, ids first: DuckDB would hold in memory, steps included, what two parts
    of a query share. Files of earlier builds say of themselves that their rows came too early, and
    are passed over.
#}
{% macro pending_trajectories(key) -%}
(
        {% if is_delta_incremental(key) -%}
        with new_ids as (
            select
                trajectories.trajectory_id,
                trajectories.ingested_at,
            from {{ ref("trajectories") }} as trajectories
            left join {{ this }} as known
                on
                    trajectories.trajectory_id = known.trajectory_id
                    and trajectories.content_sha256 = known.content_sha256
            where known.trajectory_id is null
        )

        {% endif -%}
        select *
        from {{ ref("trajectories") }}
        {%- if is_delta_incremental(key) %}
        where
            trajectory_id in (select new_ids.trajectory_id from new_ids)
            and ingested_at >= (select min(new_ids.ingested_at) from new_ids)
        {%- endif %}
    )
{%- endmacro %}
