{#
    A data test that has passed is not run again by `dbt build` while what it reads is the same:
    its SQL, the versions of the Delta tables below it, seeds, views, and our code. It is reported
    as passed, which it would be. `dbt test` and `--full-refresh` run every test. See decision 025.
#}
{% materialization test, adapter="duckdb" %}
    {%- set test = text_literal(model["unique_id"]) -%}
    {#- One query, and no transaction: most tests of most builds do nothing else. -#}
    {%- call statement("known", fetch_result=true, auto_begin=false) -%}
        select
            inputs_state({{ text_literal(tojson(delta_inputs(model))) }}) as state,
            (select key from builds.passed_tests where test = {{ test }}) as passed,
            0 as failures,
            false as should_warn,
            false as should_error
    {%- endcall -%}
    {%- set known = load_result("known") -%}
    {%- set state, passed = known["table"].rows[0][0], known["table"].rows[0][1] -%}
    {%- set key = local_md5(sql ~ state) -%}
    {%- if passed == key and invocation_args_dict["which"] == "build" and not should_full_refresh() -%}
        {%- do store_result(
            "main",
            response=known["response"],
            agate_table=known["table"].select(["failures", "should_warn", "should_error"]),
        ) -%}
        {{ return({"relations": []}) }}
    {%- endif -%}
    {%- set done = dbt.materialization_test_default() -%}
    {%- if load_result("main")["table"].rows[0][0] == 0 -%}
        {%- do run_query(
            "insert or replace into builds.passed_tests values (" ~ test ~ ", '" ~ key ~ "')"
        ) -%}
    {%- else -%}
        {%- do run_query("delete from builds.passed_tests where test = " ~ test) -%}
    {%- endif -%}
    {{ adapter.commit() }}
    {{ return(done) }}
{% endmaterialization %}
